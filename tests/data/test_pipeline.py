import io
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from emu_jax.data.images import prepare
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.pipeline import Loader, StreamSpec, make_stream, measure
from emu_jax.errors import UserError


class Pictures:
    """A source in memory: noise of many shapes, 0 to 3 captions each."""

    def __init__(self, name, count, shapes=((40, 40), (30, 60), (60, 30)), seed=0):
        rng = np.random.default_rng(seed)
        self.name, self.data, rows = name, [], []
        for i in range(count):
            h, w = shapes[i % len(shapes)]
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(file, "PNG")
            self.data.append(file.getvalue())
            rows.append(
                {
                    "key": f"{name}-{i}",
                    "width": w,
                    "height": h,
                    "sha256": "",
                    "captions": [f"{name} {i} {j}" for j in range(i % 4)],
                    "source": "noise",
                }
            )
        self.manifest = Manifest.from_rows(rows)

    def read(self, index):
        return self.data[index]


def tokenize(texts):
    """Letters as tokens."""
    ids = np.zeros((len(texts), 12), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = [ord(letter) for letter in text]
    return {"ids": ids, "mask": ids > 0}


def read_back(row):
    return "".join(chr(i) for i in row if i)


PARTS = [Selection(Pictures("a", 40), 0.75), Selection(Pictures("b", 17, seed=1), 0.25)]
SPEC = StreamSpec(
    batch_size=12, side=32, bucket_step=8, buckets=True, crop="random", flip=True, seed=5
)


def take(count, spec=SPEC, parts=PARTS, **options):
    with closing(make_stream(spec, parts, {"letters": tokenize}, **options)) as batches:
        return list(islice(batches, count))


def flat(batch):
    leaves = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            leaves |= {f"{name}/{key}": array for key, array in flat(value).items()}
        else:
            leaves[name] = value
    return leaves


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype and np.array_equal(array, b[name]), name


def test_fields_and_shapes():
    shapes = set()
    for batch in take(20):
        h, w = batch["image"].shape[1:3]
        shapes.add((h, w))
        assert batch["image"].shape == (12, h, w, 3) and batch["image"].dtype == np.uint8
        assert batch["sizes"].shape == (12, 6) and batch["sizes"].dtype == np.int32
        assert np.all(batch["sizes"][:, 4:] == [h, w])
        assert batch["record"].shape == (12,) and batch["record"].dtype == np.int32
        assert batch["tokens"]["letters"]["ids"].shape == (12, 12)
        assert set(batch) == {"image", "sizes", "record", "tokens"}
    assert shapes == {(32, 32), (24, 40), (40, 24)}


def test_rows_are_the_records():
    plan = Loader(SPEC, PARTS, {}).plan
    for n, batch in enumerate(take(5)):
        rows = plan.batch(n)
        for i, record in enumerate(batch["record"]):
            s, index = (0, record) if record < 40 else (1, record - 40)
            assert (s, index) == (rows.sources[i], rows.records[i])
            source = PARTS[s].source
            image, sizes = prepare(
                source.data[index], rows.bucket, random_crop=True, flip=True, seed=rows.seeds[i]
            )
            assert np.array_equal(batch["image"][i], image)
            assert np.array_equal(batch["sizes"][i], sizes)
            caption = read_back(batch["tokens"]["letters"]["ids"][i])
            captions = source.manifest.column("captions")[index]
            assert caption in captions if captions else caption == ""


def test_starting_later_equals_dropping_the_first():
    whole = take(12)
    for start in (1, 7):
        for a, b in zip(whole[start:], take(12 - start, start_step=start), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4])
def test_hosts_share_the_same_global_batch(hosts):
    shares = [take(4, start_step=3, rows=np.arange(i, 12, hosts)) for i in range(hosts)]
    for whole, parts in zip(take(4, start_step=3), zip(*shares, strict=True), strict=True):
        parts = [flat(part) for part in parts]
        for name, array in flat(whole).items():
            for i, part in enumerate(parts):
                assert np.array_equal(array[i::hosts], part[name]), name


def test_threads_and_prefetch_change_nothing():
    spec = replace(SPEC, threads=5, prefetch=7)
    for a, b in zip(take(8), take(8, spec), strict=True):
        assert_same(a, b)


def test_captions_are_drawn_among_several():
    captions = Captions(PARTS)
    assert captions.texts[0] == "" and captions.texts[1:] == sorted(captions.texts[1:])
    chosen = captions.choose(np.full(3000, 3), np.arange(3000, dtype=np.uint64))
    texts, counts = np.unique([captions.texts[i] for i in chosen], return_counts=True)
    assert texts.tolist() == ["a 3 0", "a 3 1", "a 3 2"] and counts == pytest.approx(1000, abs=120)
    assert captions.choose(np.array([0, 40]), np.zeros(2, np.uint64)).tolist() == [0, 0]


def test_selection():
    part = replace(PARTS[0], select="width == 60")
    assert {int(record) for batch in take(20, parts=[part]) for record in batch["record"]} == {
        i for i in range(40) if i % 3 == 1
    }
    assert all(int(text.split()[1]) % 3 == 1 for text in Captions([part]).texts[1:])
    with pytest.raises(UserError, match="No record of a matches 'width == 61'"):
        take(1, parts=[replace(part, select="width == 61")])


def test_sequential_stream_ends():
    spec = replace(SPEC, sequential=True, batch_size=8)
    batches = take(None, spec)
    seen = np.concatenate([batch["record"][batch["valid"]] for batch in batches])
    assert sorted(seen) == list(range(57)) and len(batches) == 9  # 8 rows of each of 3 buckets
    assert len(take(None, spec, start_step=7)) == 2 and take(None, spec, start_step=9) == []
    assert len(take(None, replace(SPEC, num_steps=3))) == 3


def test_a_damaged_picture_is_named():
    source = Pictures("c", 9)
    source.data[4] = source.data[4][:50]
    with pytest.raises(UserError, match=r"Image 'c-4' of c cannot be read \(.*damaged"):
        take(5, parts=[Selection(source)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": "center"}, "'centre' or 'random'"),
        ({"batch_size": 0}, "batch_size is 0; use 1 or more"),
        ({"side": 30}, "multiple of the bucket step"),
    ],
)
def test_bad_specs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        take(1, replace(SPEC, **change))


def test_a_stream_without_sources_is_refused():
    with pytest.raises(UserError, match="at least one source"):
        take(1, parts=[])


def test_tokenizers_are_never_entered_twice():
    inside, overlaps = [], []

    def fragile(texts):
        overlaps.append(len(inside))
        inside.append(1)
        time.sleep(0.003)
        inside.pop()
        return tokenize(texts)

    spec = replace(SPEC, threads=4, prefetch=8)
    with closing(make_stream(spec, PARTS, {"letters": fragile})) as batches:
        list(islice(batches, 10))
    assert len(overlaps) >= 10 and set(overlaps) == {0}


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    batches = make_stream(SPEC, PARTS, {})
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_measure_counts_pictures():
    def slow():
        for _ in range(1000):
            time.sleep(0.01)
            yield {"record": np.zeros(5)}

    assert 250 < measure(slow(), 0.3) < 510


MAIN = """
    import io
    from contextlib import closing
    from itertools import islice
    import multiprocessing
    import numpy as np
    from PIL import Image
    from emu_jax.data.manifest import Manifest
    from emu_jax.data.mixture import Selection
    from emu_jax.data.pipeline import StreamSpec, make_stream
    from emu_jax.errors import UserError

    class Flat:
        name = "flat"
        def __init__(self, damaged=-1):
            self.damaged = damaged
            self.manifest = Manifest.from_rows(
                {"key": f"k{i}", "width": 8, "height": 8, "captions": [f"n{i}"]} for i in range(20)
            )
        def read(self, index):
            if index == self.damaged:
                return b"nothing"
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (index, 0, 0)).save(file, "PNG")
            return file.getvalue()

    def tokenize(texts):
        ids = np.array([[int(text[1:])] for text in texts])
        return {"ids": ids, "mask": ids >= 0}

    def take(workers, source):
        spec = StreamSpec(batch_size=4, side=8, workers=workers, prefetch=2)
        selections = [Selection(source)]
        with closing(make_stream(spec, selections, {"n": tokenize}, start_step=3)) as batches:
            return list(islice(batches, 8))

    if __name__ == "__main__":
        for a, b in zip(take(0, Flat()), take(2, Flat()), strict=True):
            assert np.array_equal(a["image"], b["image"])
            assert np.array_equal(a["record"], b["record"])
            assert np.array_equal(a["tokens"]["n"]["ids"], b["tokens"]["n"]["ids"])
            assert np.array_equal(b["tokens"]["n"]["ids"][:, 0], b["image"][:, 0, 0, 0])
        assert not multiprocessing.active_children()
        try:
            take(1, Flat(damaged=13))
        except UserError as error:
            print(error)
        assert not multiprocessing.active_children()
"""


def test_worker_processes_of_a_module_main(tmp_path):
    (tmp_path / "flat_main.py").write_text(textwrap.dedent(MAIN))
    done = subprocess.run(
        [sys.executable, "-m", "flat_main"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Image 'k13' of flat cannot be read"), done.stdout
    assert "Exception ignored" not in done.stderr, done.stderr
