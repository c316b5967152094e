"""Curation by people in Emu's stages: images of a data set are judged, and a data set comes out.

    recall      generalists mark what is clearly bad; everything else stays
    precision   specialists keep only the best, and say what is wrong with the others
    captions    the caption of an image is written by hand

The new data set has the records of the old one and a manifest with more columns, so that a
condition selects what was kept: ``recall_kept == 1``. Of every image

    STAGE_votes             the number of verdicts
    recall_kept             0 if more than half of the votes say that it is bad, else 1
    precision_kept          1 if more than half of the votes keep it, else 0
    fault_NAME              of precision: the number of votes that found this fault
    captions_kept           1 if a caption was written; `captions` are then those that were written
    captions_before         those that it had

and -1 in ``STAGE_kept`` where nobody has judged it.
"""

import os
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from etils import epath
from sqlalchemy import insert, select, update

from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Selection
from emu_jax.data.source import find, open_source
from emu_jax.errors import UserError
from emu_jax.people import tables
from emu_jax.people.images import decode
from emu_jax.people.making import insert_image
from emu_jax.people.questions import CAPTIONS, FAULTS, PRECISION, RECALL
from emu_jax.people.results import Row, answer_rows
from emu_jax.people.store import Store
from emu_jax.progress import watch

_VERSION = "1.0.0"


def make_curation(
    store: Store,
    dataset: str,
    data_dir: str,
    stage: str,
    votes: int,
    select_by: str = "",
    size: int | None = None,
    seed: int = 0,
) -> int:
    """Makes the study of a stage, of the records that ``select_by`` chooses. Returns their number.
    An interrupted call continues.
    """
    selection = Selection(open_source(dataset, data_dir), select=select_by)
    manifest, texts = selection.source.manifest, selection.texts()
    keys = manifest.column("key")
    settings = {
        "dataset": dataset,
        "data_dir": str(data_dir),
        "select": select_by,
        "manifest": manifest.fingerprint,
        "votes": {stage: votes},
        "size": size,
        "seed": seed,
    }
    with store.write() as connection:
        found = connection.execute(select(tables.study)).one_or_none()
        if found is None:
            values = dict(kind=stage, settings=settings, secret=secrets.token_hex(32), ready=False)
            connection.execute(insert(tables.study).values(values))
        elif found.ready or (found.kind, found.settings) != (stage, settings):
            raise UserError(
                f"{store.folder} has another study already; serve it with emu-jax people serve, or "
                "name another folder."
            )
        there = set(connection.scalars(select(tables.images.c.key)))
    missing = [int(i) for i in selection.records() if keys[i] not in there]
    for record in watch(missing, "images", len(missing)):
        try:
            pixels = decode(selection.source.read(record))
        except UserError as error:
            raise UserError(f"{keys[record]} of {dataset} cannot be read: {error}.") from error
        insert_image(store, pixels, size, key=str(keys[record]), captions=list(texts[record]))
    with store.write() as connection:
        images = list(connection.scalars(select(tables.images.c.id).order_by(tables.images.c.id)))
        rows = [
            {"question": stage, "role": "study", "votes": votes, "first": image} for image in images
        ]
        connection.execute(insert(tables.items), rows)
        connection.execute(update(tables.study).values(ready=True))
    return len(images)


def write_curated(store: Store, name: str, data_dir: str) -> epath.Path:
    """Writes the data set ``name`` into ``data_dir``; returns its folder.

    Raises:
      UserError: the study is none of curation, its data set has changed, or ``name`` exists.
    """
    study = store.study()
    if "dataset" not in study.settings:
        raise UserError(f"{store.folder} is a study of preference; it has no images to select.")
    source = open_source(study.settings["dataset"], study.settings["data_dir"])
    if source.manifest.fingerprint != study.settings["manifest"]:
        raise UserError(
            f"{source.name} was built anew since the study was made: the study is of other images."
        )
    family, _, own = name.partition("/")
    if family != "folder" or not own.isidentifier():
        raise UserError(f"{name!r} cannot name the data set; use folder/NAME.")
    if find(name, data_dir):
        raise UserError(f"There is a data set {name} in {data_dir} already: use another name.")
    rows = [row for row in answer_rows(store) if row.counts]
    manifest = with_verdicts(source.manifest, study.kind, rows)
    target = epath.Path(data_dir).expanduser() / name / _VERSION
    target.mkdir(parents=True, exist_ok=True)
    for file in epath.Path(source.directory).iterdir():
        # Neither the old manifest, of one file or several, nor its index.
        if not file.is_dir() and not file.name.startswith("manifest"):
            _copy(file, target / file.name)
    manifest.write(target)  # last: without it the data set is not complete
    return target


def with_verdicts(manifest: Manifest, stage: str, rows: Sequence[Row]) -> Manifest:
    """The manifest with the columns of a stage; see the module's docstring."""
    of: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        of[row.key].append(row.answer)
    keys = [str(key) for key in manifest.column("key")]
    table = manifest.table
    columns: dict[str, list[Any]] = {f"{stage}_votes": [len(of[key]) for key in keys]}
    if stage == RECALL:
        columns["recall_kept"] = [_kept(2 * of[k].count("bad") <= len(of[k]), of[k]) for k in keys]
    elif stage == PRECISION:
        best = {key: sum(answer["keep"] for answer in of[key]) for key in keys}
        columns["precision_kept"] = [_kept(2 * best[k] > len(of[k]), of[k]) for k in keys]
        faults = [
            Counter(fault for answer in of[key] for fault in answer["faults"]) for key in keys
        ]
        for fault in FAULTS:
            columns[f"fault_{fault}"] = [one[fault] for one in faults]
    elif stage == CAPTIONS:
        written = [
            list(dict.fromkeys(" ".join(answer["caption"].split()) for answer in of[key]))
            for key in keys
        ]
        before = table["captions"]
        columns["captions_kept"] = [1 if one else -1 for one in written]
        texts = [new or old for new, old in zip(written, before.to_pylist(), strict=True)]
        place = table.column_names.index("captions")
        table = table.set_column(place, "captions", pa.array(texts, pa.list_(pa.string())))
        table = _with(table, "captions_before", before)
    for name, values in columns.items():
        table = _with(table, name, pa.array(values, pa.int32()))
    return Manifest(table)


def _kept(kept: bool, verdicts: Sequence[Any]) -> int:
    return int(kept) if verdicts else -1


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with a column, which replaces one of the same stage before."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def _copy(source: epath.Path, target: epath.Path) -> None:
    """The same file under another path, without its bytes twice where the disk can do that."""
    if target.exists():
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
