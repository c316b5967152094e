"""People's preferences between two images, from the tables in a directory.

    own form       *.jsonl, *.csv or *.parquet with the columns `image` and `other` (paths relative
                   to the directory) and `prompt`; where they are there, `dimension`, `votes` and
                   `votes_other`. Without votes people prefer the image
    Pick-a-Pic     *.parquet with jpg_0, jpg_1 (the files' bytes), caption, label_0 and label_1; a
                   label is 1 for the preferred image and 0.5 for a tie
    ImageReward    *.json, a list of {prompt, generations, ranking}: paths of several images of one
                   prompt and their ranks, of which 1 is the best. Every two images of different
                   ranks are a pair

Of the last two forms the preferred image comes first. `split` of a pair is what its table is called
before the first "-" or ".": that of train-00000-of-00645.parquet is train. Of a published form the
columns that say nothing of the preference are skipped; any other unknown column is reported.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from emu_jax.data.captions import Columns, clean_text, image_file, read_rows
from emu_jax.data.textfile import read_text
from emu_jax.errors import UserError

_TABLES = (".jsonl", ".csv", ".parquet", ".json")
_OWN = ("image", "other", "prompt")
_MORE = ("dimension", "votes", "votes_other")
_PICK = ("jpg_0", "jpg_1", "caption", "label_0", "label_1")
_PICK_SKIPPED = {
    *("are_different", "best_image_uid", "created_at", "has_label", "ranking_id", "user_id"),
    *("image_0_uid", "image_1_uid", "image_0_url", "image_1_url", "model_0", "model_1"),
    *("num_example_per_prompt", "__index_level_0__"),
}
_RANKED = {"prompt", "generations", "ranking"}
_RANKED_SKIPPED = {"id", "prompt_id", "classification", "image_amount_in_total"}


class Pair(NamedTuple):
    """Two images, each a path or the bytes of its file, and the votes for them; ``place`` is that
    in the table.
    """

    image: epath.Path | bytes
    other: epath.Path | bytes
    prompt: str
    votes: tuple[int, int]
    dimension: str
    split: str
    place: str


def tables_in(root: epath.Path) -> list[epath.Path]:
    """The tables of a directory, sorted.

    Raises:
      UserError: there is none.
    """
    found = sorted(file for file in root.iterdir() if file.suffix.lower() in _TABLES)
    if not found:
        raise UserError(
            f"There is no table of pairs in {root}: use *.jsonl, *.csv or *.parquet with the "
            f"columns {', '.join(_OWN)}, or Pick-a-Pic's or ImageReward's files."
        )
    return found


def read_pairs(root: epath.Path, unread: set[str] | None = None) -> Iterator[Pair]:
    """The pairs of all tables, in order; images are not opened. Names of unknown columns are added
    to ``unread``.

    Raises:
      UserError: a table of another form, or a row that is wrong; it is named.
    """
    unread = set() if unread is None else unread
    for table in tables_in(root):
        split = re.split(r"[-.]", table.name)[0]
        if table.suffix.lower() == ".json":
            yield from _ranked(root, table, split, unread)
            continue
        for place, row in read_rows(table, Columns(further=(*_OWN, *_MORE, *_PICK, "has_label"))):
            where = f"{table}, {place}"
            if row.keys() >= set(_OWN):
                unread.update(row.keys() - {*_OWN, *_MORE})
                yield _own(root, where, row, split)
            elif row.keys() >= set(_PICK):
                unread.update(row.keys() - _PICK_SKIPPED - {*_PICK})
                yield from _picked(where, row, split)
            else:
                raise UserError(
                    f"{where} has the columns {', '.join(map(str, row)) or 'none'}; pairs need "
                    f"{', '.join(_OWN)}, or Pick-a-Pic's {', '.join(_PICK)}."
                )


def _own(root: epath.Path, where: str, row: Mapping[str, Any], split: str) -> Pair:
    unknown = [name for name in row if str(name).startswith("vote") and name not in _MORE]
    if unknown:  # a misspelt column would make every row a preference for the image
        raise UserError(f"{where} has a column {unknown[0]!r}; use votes and votes_other.")
    given = [row.get(name) for name in ("votes", "votes_other")]
    # A row without any votes says what people prefer by its order; 0 to 0 is a tie.
    unsaid = all(map(_is_empty, given))
    votes = (1, 0) if unsaid else (_votes(given[0], where), _votes(given[1], where))
    image, other = (_file(root, row[name], where, name) for name in ("image", "other"))
    prompt, dimension = (clean_text(row.get(name), where) for name in ("prompt", "dimension"))
    return Pair(image, other, prompt, votes, dimension, split, where)


def _picked(where: str, row: Mapping[str, Any], split: str) -> Iterator[Pair]:
    """The pair of Pick-a-Pic's row, if people have judged it."""
    if row.get("has_label") is False:
        return
    labels = [row["label_0"], row["label_1"]]
    images = [row["jpg_0"], row["jpg_1"]]
    if labels not in ([0, 1], [1, 0], [0.5, 0.5]):
        raise UserError(f"{where}: the labels are {labels}; 0 and 1 or twice 0.5 are known.")
    if not all(isinstance(image, bytes) for image in images):
        raise UserError(f"{where}: jpg_0 and jpg_1 must hold the bytes of two images.")
    if labels == [0, 1]:
        images.reverse()
    votes = (1, 1) if 0.5 in labels else (1, 0)
    image, other = images
    yield Pair(image, other, clean_text(row["caption"], where), votes, "", split, where)


def _ranked(root: epath.Path, table: epath.Path, split: str, unread: set[str]) -> Iterator[Pair]:
    """The pairs of ImageReward's file."""
    try:
        items = json.loads(read_text(table))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{table} cannot be read as JSON: {error}.") from error
    for number, item in enumerate(items if isinstance(items, list) else [items], start=1):
        where = f"{table}, item {number}"
        images, ranks = (
            (item.get(name) if isinstance(item, dict) else None)
            for name in ("generations", "ranking")
        )
        if not (
            isinstance(images, list)
            and isinstance(ranks, list)
            and len(images) == len(ranks)
            and all(isinstance(rank, int | float) and math.isfinite(rank) for rank in ranks)
        ):
            raise UserError(
                f"{where} has no generations with as many numbers in ranking: ImageReward's items "
                "have prompt, generations and ranking."
            )
        unread.update(item.keys() - _RANKED - _RANKED_SKIPPED)
        files = [_file(root, name, where, "generations") for name in images]
        prompt = clean_text(item.get("prompt"), where)
        for pair in combinations(zip(ranks, files, strict=True), 2):
            (first, better), (second, worse) = sorted(pair, key=lambda ranked: ranked[0])
            if first < second:
                yield Pair(better, worse, prompt, (1, 0), "", split, where)


def _file(root: epath.Path, value: Any, where: str, column: str) -> epath.Path:
    return root / image_file(root, PurePosixPath(), value, where, column)


def _is_empty(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def _votes(value: Any, where: str) -> int:
    """A number of votes; empty: 0."""
    if _is_empty(value):
        return 0
    try:
        votes = int(value)
    except (ValueError, OverflowError, TypeError):
        votes = -1
    if not 0 <= votes < 2**31 or votes != float(value):
        raise UserError(f"{where}: {str(value)[:40]!r} is no number of votes.")
    return votes
