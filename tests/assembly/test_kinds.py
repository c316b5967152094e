"""Sections by kind: written ones, and those that are derived from what an entry builds."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from emu_jax.assembly.checking import typed
from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.schema import Section, completed, keys, required
from emu_jax.assembly.sections.generation import IdentityCodec
from emu_jax.errors import UserError
from emu_jax.registry import Lazy


def make_wavelet(
    name: str, *, levels: int, taps: tuple[int, ...] = (1, 3), path: str | None = None
):
    """A codec of another package."""


CODECS = {"identity": Lazy("emu_jax:none"), "wavelet": make_wavelet}


@dataclass(frozen=True, kw_only=True)
class Host(Section):
    codec: Annotated[Section, Kinds(CODECS, IdentityCodec, given=("name",))] = required("One.")


def check(**codec):
    return typed(Host, {"codec": codec}, "config").codec


def test_an_entry_without_a_section_has_the_arguments_of_what_it_builds():
    found = check(kind="wavelet", levels=2)
    assert (found.kind, found.levels, found.taps, found.path) == ("wavelet", 2, (1, 3), None)
    assert list(keys(type(found))) == ["kind", "levels", "taps", "path"]
    stored = completed(Host, {"codec": {"kind": "wavelet", "levels": 2}})
    assert stored.codec.taps == (1, 3)


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        (dict(kind="wavelet"), "config.codec.levels is not set; use a whole number."),
        (dict(kind="wavelet", levels=1.5), "config.codec.levels is 1.5; use a whole number."),
        (dict(kind="wavelet", level=2), "no key config.codec.level of kind wavelet; did you mean"),
        (dict(kind="wave"), "config.codec.kind is 'wave'; use identity or wavelet"),
    ],
)
def test_what_is_wrong_is_said_as_for_any_section(codec, said):
    with pytest.raises(UserError, match=said):
        check(**codec)


def test_a_written_section_imports_nothing():
    """The entry of the kind could not even be imported."""
    assert isinstance(check(kind="identity"), IdentityCodec)
    assert isinstance(check(), IdentityCodec)  # the first kind


def test_entries_are_added_at_any_time(monkeypatch):
    monkeypatch.setitem(CODECS, "late", lambda name, *, gain=1.0: None)
    assert check(kind="late", gain=2).gain == 2
