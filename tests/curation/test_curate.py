"""The whole command on a small pool: scores, choices, report, data set; kills, other thresholds."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import runs
from PIL import Image

from emu_jax.cli.main import main
from emu_jax.curation.scores import Scores, write_table
from emu_jax.curation.scoring import score_shard
from emu_jax.curation.sources import Folder
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.source import open_source
from emu_jax.people.curating import with_verdicts

CONFIG = """
from emu_jax.assembly.schema import section
from emu_jax.curation.sections import Curation, steps

def get_config(argument=None):
    return section(
        Curation,
        source=dict(kind="folder", path="", shard_size=7, texts=("group",), numbers=("likes",)),
        filters=dict(shape={}, focus={}, hash={}, popularity=dict(column="likes")),
        steps=steps(
            size=dict(kind="threshold", column="short_side", at_least=20),
            duplicates=dict(kind="duplicates", weights=dict(popularity=1.0)),
            top=dict(kind="top", count=12, floor=2, column="group", weights=dict(sharpness=1.0)),
        ),
        report=dict(by="group", images=4),
    )
"""
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pool of 30 images: two damaged, three small, three copies."""
    folder = tmp_path_factory.mktemp("curation")
    (folder / "config.py").write_text(CONFIG)
    (folder / "pool").mkdir()
    rows = []
    for i in range(30):
        draw = np.random.default_rng(i - 20 if i >= 27 else i)
        side = 12 if i < 3 else 40
        pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / "pool" / f"{i:02d}.png")
        if i in (4, 5):
            data = (folder / "pool" / f"{i:02d}.png").read_bytes()
            (folder / "pool" / f"{i:02d}.png").write_bytes(data[: len(data) // 2])
        group = HOSTILE if i % 6 == 0 else "plain"
        captions = [f"by hand {i}", f"found {i}"]
        rows.append(dict(file_name=f"{i:02d}.png", captions=captions, group=group, likes=i % 9))
    table = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pool" / "metadata.jsonl").write_text(table)
    return folder


def command(place, out, *more):
    return [
        *("data", "curate", f"--config={place}/config.py", f"--config.source.path={place}/pool"),
        *(f"--out={place}/{out}", f"--data_dir={place}/{out}_data", *more),
    ]


def bits(place, out):
    """Digests of all files that a run has made; a kill may leave others, under hidden names."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in (place / out, place / f"{out}_data")
        for path in root.rglob("*")
        if path.is_file() and not re.search(r"\.tmp$|/\.building-", str(path))
    }


@pytest.fixture(scope="module")
def whole(place):
    assert main(command(place, "whole")) == 0
    return bits(place, "whole")


def test_a_pool_becomes_a_data_set(place, whole, capsys):
    capsys.readouterr()
    assert main(command(place, "whole", "--times")) == 0  # nothing is done again
    said = capsys.readouterr().out
    assert "30 images in 5 shards" in said and "2 images cannot be read" in said
    assert "  04.png: truncated" in said and "ms/image" not in said
    lefts = dict(re.findall(r"^  (\w+) +(\d+)", said, re.MULTILINE))
    assert [int(lefts[name]) for name in ("pool", "readable", "size", "duplicates", "top")] == [
        *(30, 28, 25, 22, 12)
    ]
    assert bits(place, "whole") == whole

    source = open_source("curated/needles", place / "whole_data")
    manifest = source.manifest
    keys, likes = manifest.column("key").tolist(), manifest.column("likes").tolist()
    assert len(source) == 12 and keys == sorted(keys)
    assert likes == [int(key[:2]) % 9 for key in keys]
    # Of the pairs (7, 27), (8, 28) and (9, 29) the one with more likes stays.
    assert not {"27.png", "28.png", "09.png"} & set(keys)
    assert manifest.column("captions")[0] == [
        f"by hand {int(keys[0][:2])}",
        f"found {int(keys[0][:2])}",
    ]
    assert source.read(0) == (place / "pool" / keys[0]).read_bytes()
    assert manifest.select("upsampled == 0 and original_width == 40").tolist() == list(range(12))
    assert np.count_nonzero(manifest.column("group") == HOSTILE) >= 2
    assert len(Captions([Selection(source, 1.0, "part != held_out")]).texts) > 10

    page = (place / "whole" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    for title in ("The funnel", "sharpness at its quantiles", "size: short_side at least 20"):
        assert title in page
    assert "3 groups of near-duplicates" in page and page.count("<img ") > 60


class Corner:
    """A filter with a vector: the first pixel."""

    columns = MappingProxyType({"corner": pa.list_(pa.float16(), 3)})

    def __call__(self, batch):
        return {"corner": [image[0, 0].astype(np.float16) for image in batch.images]}


def test_the_vector_of_a_damaged_image_is_zero(place, tmp_path):
    config = SimpleNamespace(batch_size=4, side=64, background=(255, 255, 255))
    source = Folder(str(place / "pool"), shard_size=7)
    (name, table), *others = score_shard(config, source, 0, {"corner": Corner()})
    assert name == "corner" and not others
    scores = Scores(1, {"corner": f"{tmp_path}/corner"})
    write_table(table, scores.path("corner", 0))
    vectors = scores.read(0, ["corner"])["corner"]
    assert vectors.shape == (7, 3) and vectors.dtype == np.float32
    assert (vectors.any(1) == [i not in (4, 5) for i in range(7)]).all()


def test_other_thresholds_need_no_scores(place, whole, capsys):
    capsys.readouterr()
    more = ("--config.steps.size.at_least=10", "--config.steps.top.count=9")
    assert main(command(place, "whole", "--stage=choose", *more)) == 0
    said = capsys.readouterr().out
    assert re.search(r"size +28 ", said) and re.search(r"top +9", said)
    found = bits(place, "whole")
    assert {name for name in found if found[name] != whole.get(name)} == {
        name for name in found if name.startswith("choices/") and name not in whole
    }
    assert main(command(place, "whole", "--config.steps.top.count=9")) == 2
    assert "curated/needles exists" in capsys.readouterr().err


def test_a_filter_that_is_added_computes_its_own_columns(place, whole, capsys):
    more = ("--stage=score", "--config.filters.focus.side=20")
    assert main(command(place, "whole", *more)) == 0
    new = set(bits(place, "whole")) - set(whole)
    assert len([name for name in new if name.startswith("scores/focus-")]) == 5
    assert not [name for name in new if name.startswith("scores/") and "focus" not in name]


def test_a_killed_run_continues_with_the_same_bits(place, whole):
    """kill -9 in the middle of a file, once while scoring and once while building."""
    program = (
        "import os, signal, sys; from emu_jax.curation import scores; from etils import epath\n"
        "from emu_jax.data.manifest import Manifest; from emu_jax.cli.main import main\n"
        "real, left = scores.write_bytes, [6]\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def write(data, path):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: (path.parent / f'.{path.name}.1.tmp').write_bytes(data[:9]); die()\n"
        "    real(data, path)\n"
        "if sys.argv.pop(1) == 'scoring': scores.write_bytes = write\n"
        "else: Manifest.write = die\n"
        "main(sys.argv[1:])"
    )
    for moment in ("scoring", "building"):
        arguments = [sys.executable, "-c", program, moment, *command(place, "killed")]
        run = subprocess.run(arguments, cwd=runs.ROOT, capture_output=True)
        assert run.returncode == -9, run.stderr.decode()[-2000:]
        there = bits(place, "killed")
        assert 0 < len(there) < len(whole) and there.items() <= whole.items() | there.items()
    assert main(command(place, "killed")) == 0
    assert bits(place, "killed") == whole


def test_people_judge_what_was_chosen_and_the_funnel_goes_on(place, whole, tmp_path):
    """Verdicts of people are columns that a step of the next curation reads."""
    made = open_source("curated/needles", place / "whole_data")
    study = [f"--out={tmp_path}/recall", f"--data_dir={place}/whole_data", "--no_serve"]
    assert main(["people", "curate", "curated/needles", "--stage=recall", *study]) == 0

    keys = made.manifest.column("key").tolist()
    rows = [
        SimpleNamespace(key=key, answer="bad" if i < 5 else "good") for i, key in enumerate(keys)
    ]
    seen = tmp_path / "folder" / "seen" / "1.0.0"
    shutil.copytree(made.directory, seen)
    with_verdicts(made.manifest, "recall", rows).write(seen)

    config = tmp_path / "config.py"
    config.write_text(
        CONFIG.replace('kind="folder", path="", shard_size=7', 'kind="dataset", name="folder/seen"')
        .replace('("likes",)', '("likes", "recall_kept", "sharpness")')
        .replace("focus={}, ", "")
        .replace('column="short_side", at_least=20', 'column="recall_kept", at_least=1')
    )
    arguments = ["data", "curate", f"--config={config}", f"--out={tmp_path}/second"]
    more = [f"--config.source.data_dir={tmp_path}", f"--data_dir={tmp_path}"]
    assert main([*arguments, *more, "--config.name=best"]) == 0
    best = open_source("curated/best", tmp_path).manifest
    assert best.column("key").tolist() == keys[5:] and set(best.column("recall_kept")) == {1}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.filters.focus.sid=3", "no key config.filters.focus.sid"),
        ("--config.steps.size.column=hight", "config.steps.size.column is 'hight'"),
        ("--config.source.path=/none", "There is no folder /none"),
        ("--config.source.numbers=('width',)", "'width' cannot be kept"),
        ("--config.source.texts=('groop',)", "config.source.texts names 'groop', and no image"),
        ("--config.filters.popularity.column=stars", "a column that config.source.numbers names"),
        ("--config.steps.size.at_least=x", "config.steps.size.at_least is 'x'; use a number"),
    ],
)
def test_a_mistake_is_one_sentence(place, whole, override, sentence, capsys):
    assert main([*command(place, "wrong"), override]) == 2
    error = capsys.readouterr().err
    assert sentence in error


def test_images_that_are_too_small_are_enlarged_once(place, whole, monkeypatch, capsys):
    """The network is a stand-in that doubles pixels."""
    import emu_jax.assembly.generator as generator

    calls = []

    class Doubling:
        input_kind, recipe = "image", {"weights": "w"}

        def __init__(self, checkpoint, batch_size, **changes):
            assert checkpoint in ("a", "b") and changes == {"steps": 3}

        def draw_each(self, prompts, seeds, low):
            calls.append((prompts[0], seeds[0]))
            yield low[0].repeat(2, 0).repeat(2, 1)

    monkeypatch.setattr(generator, "Generator", Doubling)
    more = [
        *("--config.steps.size.at_least=10", "--config.name=large", "--config.steps.top.count=25"),
        *("--config.upsample.checkpoint=a+b", "--config.upsample.short_side=48"),
        "--config.upsample.steps=3",
    ]
    assert main(command(place, "whole", *more)) == 0
    manifest = open_source("curated/large", place / "whole_data").manifest
    before = np.array(manifest.column("original_width"))
    assert set(before) == {12, 40} and set(manifest.column("upsampled")) == {1}
    # Two stages: 12 -> 24 -> 48, and 40 -> 80, of which the second is not needed.
    assert np.array_equal(manifest.column("width"), np.where(before == 12, 48, 80))
    assert len(calls) == 2 * np.count_nonzero(before == 12) + np.count_nonzero(before == 40)
    assert calls[0][0].startswith("by hand")
    count = len(calls)
    assert main(command(place, "whole", *more, "--force", "--config.upsample.seed=0")) == 0
    assert len(calls) == count
