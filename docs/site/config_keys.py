"""Write docs/config_keys.md, the reference of all keys of a config, from their schema.

python docs/site/config_keys.py
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import MISSING
from pathlib import Path

from emu_jax.assembly.checking import words
from emu_jax.assembly.schema import Section, dicts, entry_of, keys, kind_of, sections
from emu_jax.assembly.sections.runs import TASKS, Run
from emu_jax.curation.sections import Curation
from emu_jax.data.places import DEFAULT_DATA_DIR

PAGE = Path(__file__).parents[1] / "config_keys.md"
HEAD = """# Config keys

All keys of a config, by section. This page is generated from `emu_jax/assembly/sections` and
`emu_jax/curation/sections.py` by `python docs/site/config_keys.py`. [Configs](configs.md) explains
how to use them.
"""
# Section -> where it is listed.
Listed = dict[type[Section], str]


def page() -> str:
    """The whole page."""
    listed: Listed = {}
    lines = [HEAD, *_section("config", Run, listed)]
    for task, kind in TASKS.items():
        # Of a task that extends another one, its own keys only.
        inherited = {key for base in kind.section.__bases__ for key in keys(base)} - {"task"}
        lines += _section(f"config, task={task}", kind.section, listed, leave_out=inherited)
    lines += _section("config, of curation", Curation, listed)
    return "\n".join([*lines, ""])


def _section(
    title: str, kind: type[Section], listed: Listed, leave_out: Collection[str] = ()
) -> Iterator[str]:
    """A section's heading and keys, and the sections in it."""
    yield f"\n## {title}\n"
    if kind in listed:
        yield f"As {listed[kind]}."
        return
    listed[kind], name = title, title.split(",")[0]
    yield re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join((kind.__doc__ or "").split()))
    yield "\n| key | value | default | meaning |\n|---|---|---|---|"
    for key, (annotation, about, field) in keys(kind).items():
        if key not in leave_out:
            value = "section" if sections(annotation) else words(annotation, about)
            cells = (f"`{key}`", value, _default(field), about.doc)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    for key, (annotation, _, _) in keys(kind).items():
        place = f"{name}.{key}"
        while dicts(annotation):
            annotation, place = entry_of(annotation, {}), f"{place}.NAME"
        for option in sections(annotation) if key not in leave_out else ():
            several = len(sections(annotation)) > 1
            yield from _section(
                f"{place}, kind={kind_of(option)}" if several else place, option, listed
            )


def _default(field) -> str:
    if field.default is MISSING:
        return "" if field.default_factory is not MISSING else "required"
    return f"`{field.default!r}`".replace(DEFAULT_DATA_DIR, "~/emu_jax_data")


if __name__ == "__main__":
    PAGE.write_text(page())
