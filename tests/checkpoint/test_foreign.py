"""JSON of others: what is read, and each way to be refused in one sentence."""

import json
import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from emu_jax.checkpoint import foreign
from emu_jax.checkpoint.foreign import (
    blaming,
    described_by,
    entry,
    like,
    parse_json,
    read_json,
    require_fit,
)
from emu_jax.errors import UserError
from emu_jax.nn.layers import activation


def test_an_object_is_read_as_json_reads_it(tmp_path):
    content = {"a": [1, 2.5, None, True, {"b": "é 😀"}], "n": float("inf")}
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False)):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON at line 1 column 1"),
        (b'{"a":\n1', "not JSON at line 2 column 2"),
        (b"[1, 2]", r"holds \[1, 2\], not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "a lone surrogate"),
        (b'{"\\udfff": 1}', "a lone surrogate"),
        (b'{"a": 1, "b": 2, "a": 3}', "names 'a' twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not usable JSON"),
        (b"[" * 100_000, "nested more than 64 levels"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 64 levels"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 levels"),
    ],
)
def test_everything_else_is_one_sentence(data, words):
    with pytest.raises(UserError, match=rf"^a\.json .*{words}") as error:
        parse_json(data, "a.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_pair_of_surrogates_is_a_character():
    assert parse_json(rb'{"a": "\ud83d\ude00", "b": "\\ud800"}', "") == {"a": "😀", "b": r"\ud800"}


def test_a_file_is_bounded_and_regular(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no none\.json"):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe.json")  # would block
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json"):
        with pytest.raises(UserError, match=f"has no {name}"):
            read_json(tmp_path / name)
    (tmp_path / "a.json").write_text('{"a": 1}')
    monkeypatch.setattr(foreign, "MOST_BYTES", 7)
    with pytest.raises(UserError, match=r"a\.json has more than"):
        read_json(tmp_path / "a.json")


def test_an_entry_has_a_type():
    record = {"a": 1, "b": True, "c": None, "d": "x" * 1000}
    assert entry(record, "a", int, "file") == 1
    assert entry(record, "c", (str, type(None)), "file") is None
    with pytest.raises(UserError, match="file has no entry 'z'"):
        entry(record, "z", int, "file")
    with pytest.raises(UserError, match="file: the entry 'b' is True; it must be a whole number"):
        entry(record, "b", int, "file")
    with pytest.raises(UserError, match="must be an object or null") as error:
        entry(record, "d", (dict, type(None)), "file")
    assert len(str(error.value)) < 200


def test_a_config_is_like_its_defaults():
    defaults = {"size": 3, "eps": 1e-5, "act": "gelu", "eos_id": 7}
    assert like({"eps": 1, "eos_id": 0, "more": []}, defaults, "") == {
        **defaults,
        **{"eps": 1, "eos_id": 0, "more": []},
    }
    for config in ({"size": 0}, {"size": True}, {"size": 2**40}, {"act": 3}, {"eos_id": -1}):
        with pytest.raises(UserError, match=f"file: the entry '{next(iter(config))}' is "):
            like(config, defaults, "file")


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda: {}["width"], r"^model does not describe .*: it has no 'width' \("),
        (lambda: ConfigDict({}).width, r"^model does not describe .*: it has no 'width' \("),
        (lambda: activation(["gelu"]), r"TypeError: .* \(emu_jax/nn/layers\.py:\d+\)\.$"),
        (lambda: activation("x"), r"^model: The activation is 'x'; choose one of"),
    ],
)
def test_what_values_break_is_said_with_the_place(fail, words):
    with pytest.raises(UserError, match=words) as error, described_by("model"):
        fail()
    assert "\n" not in str(error.value)


def test_what_names_the_source_already_is_left_alone():
    with pytest.raises(UserError, match=r"^a model is wide$"), described_by("model"):
        raise UserError("a model is wide")
    with pytest.raises(MemoryError), described_by("model"):
        raise MemoryError


def test_an_argument_is_to_blame():
    class Opens:
        @blaming("path")
        def __init__(self, path="shipped"):
            self.path = [][0]

    for arguments, name in ((), "shipped"), (("mine",), "mine"):
        with pytest.raises(UserError, match=f"^{name} does not describe a model .*IndexError"):
            Opens(*arguments)


def test_parameters_fit_what_is_described():
    wanted = {"a": jax.ShapeDtypeStruct((2, 3), np.float32)}
    require_fit({"a": np.zeros((2, 3)), "b": 0}, wanted, "model")
    with pytest.raises(UserError, match="model lacks the parameter a"):
        require_fit({}, wanted, "model")
    with pytest.raises(UserError, match=r"the parameter a is \[1, 3\], and \[2, 3\] in"):
        require_fit({"a": np.zeros((1, 3))}, wanted, "model")
