"""Starting a network from another one's parameters, where they fit.

Every parameter of the target is either reused (a source parameter has its name, after renaming, and
its shape) or starts afresh; the report says which, so that nothing is lost in silence.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Report:
    """Paths by what became of them; ``mismatched`` are fresh because the shapes differ."""

    reused: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    parameters_reused: int
    parameters_fresh: int

    def __str__(self) -> str:
        lines = [
            f"reused {len(self.reused)} arrays, {_count(self.parameters_reused)} parameters",
            f"started anew {len(self.fresh)} arrays, {_count(self.parameters_fresh)} parameters"
            + _shortened(self.fresh),
        ]
        if self.mismatched:
            lines.append(f"  of these {len(self.mismatched)} because the shape differs")
        if self.unused:
            lines.append(f"left {len(self.unused)} arrays of the source" + _shortened(self.unused))
        return "\n".join(lines)


def transplant(
    target_shapes: Mapping[str, Any],
    source_params: Mapping[str, Any],
    *,
    rename: Sequence[tuple[str, str]] = (),
    skip: str | None = None,
) -> tuple[dict[str, Any], Report]:
    """The source's parameters that fit the target, under the target's names and in its dtypes.

    Args:
      target_shapes: path -> ShapeDtypeStruct of the network to be started.
      source_params: path -> array.
      rename: (regular expression, replacement) applied in turn to each source path.
      skip: target paths in which this regular expression is found start anew.

    Raises:
      UserError: a shape differs outside ``skip``; nothing fits; two sources for one target; or a
        pattern that matches nothing.
    """
    sources = _renamed(source_params, rename)
    skipped = {path for path in target_shapes if skip is not None and re.search(skip, path)}
    if skip is not None and not skipped:
        raise UserError(f"init_from skips {skip!r}, which matches no parameter of this model.")
    reused, fresh, mismatched = {}, [], []
    for path, target in target_shapes.items():
        value = sources.get(path)
        if value is None:
            fresh.append(path)
            continue
        fits = tuple(value.shape) == tuple(target.shape)
        if path in skipped:
            fresh.append(path)
            if not fits:
                mismatched.append(path)
        elif fits:
            reused[path] = value if value.dtype == target.dtype else value.astype(target.dtype)
        else:
            raise UserError(
                f"init_from: {path} is {list(value.shape)} in the source and {list(target.shape)} "
                "here; change the model, or name it in skip to start it anew."
            )
    if not reused:
        raise UserError(
            "init_from: no parameter of the source is one of this model's "
            f"(the source has {_example(sources)}, the model {_example(target_shapes)})."
        )
    report = Report(
        reused=tuple(reused),
        fresh=tuple(fresh),
        unused=tuple(path for path in sources if path not in reused),
        mismatched=tuple(mismatched),
        parameters_reused=_size(target_shapes[path] for path in reused),
        parameters_fresh=_size(target_shapes[path] for path in fresh),
    )
    return reused, report


def _renamed(params: Mapping[str, Any], rename: Sequence[tuple[str, str]]) -> dict[str, Any]:
    for pattern, replacement in rename:
        if not any(re.search(pattern, path) for path in params):
            raise UserError(f"init_from renames {pattern!r}, which matches no parameter there.")
        renamed: dict[str, Any] = {}
        for path, value in params.items():
            new = re.sub(pattern, replacement, path)
            if new in renamed:
                raise UserError(f"init_from renames two parameters of the source to {new}.")
            renamed[new] = value
        params = renamed
    return dict(params)


def _size(arrays: Iterable[Any]) -> int:
    return sum(math.prod(np.shape(array)) for array in arrays)


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n:,}"


def _example(params: Mapping[str, Any]) -> str:
    return next(iter(params), "none")


def _shortened(paths: Sequence[str], most: int = 6) -> str:
    """Paths by their first two segments, with how many are under each."""
    groups = Counter("/".join(path.split("/")[:2]) for path in paths)
    names = [f"{name} ({count})" for name, count in groups.most_common(most)]
    if len(groups) > most:
        names.append(f"{len(groups) - most} more")
    return ": " + ", ".join(names) if names else ""
