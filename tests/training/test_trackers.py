import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from emu_jax.errors import UserError
from emu_jax.training import trackers
from emu_jax.training.trackers import METRICS_FILE, Trackers, tile


def records(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def write_run(workdir, steps, **options):
    tracker = Trackers(workdir, **options)
    for step in steps:
        tracker.scalars(step, {"loss": jnp.float32(1 / step), "lr": 1e-5})
    tracker.close()


def test_numbers_come_back_bit_for_bit(tmp_path):
    value = np.float32(1) / np.float32(3)
    tracker = Trackers(tmp_path)
    tracker.scalars(7, {"loss": value, "bad": float("nan"), "worse": -math.inf})
    tracker.close()
    (record,) = records(tmp_path)
    assert record["step"] == 7
    assert np.float32(record["loss"]) == value
    assert math.isnan(float(record["bad"])) and float(record["worse"]) == -math.inf
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()  # every line is plain JSON


def test_a_line_survives_a_kill_without_flush(tmp_path):
    tracker = Trackers(tmp_path)
    tracker.scalars(1, {"loss": 1.0})
    assert len(records(tmp_path)) == 1  # read while the writer is still open
    tracker.close()


@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 10, "lo', b'{"step": 3, "loss": 0.5}', b'{"step": 10, "\xe9": 1}\n']
)
def test_a_resumed_run_reads_as_if_never_broken_off(tmp_path, torn):
    write_run(tmp_path / "whole", range(1, 11))
    write_run(tmp_path / "broken", range(1, 10))
    with (tmp_path / "broken" / METRICS_FILE).open("ab") as file:
        file.write(torn)  # no line end: the kill came in the middle; or a damaged byte
    write_run(tmp_path / "broken", range(7, 11), restored_step=6)
    whole, broken = ([r | {"time": 0} for r in records(tmp_path / x)] for x in ("whole", "broken"))
    assert broken == whole
    assert not list((tmp_path / "broken").glob("*.new"))


def test_a_run_that_starts_anew_forgets_the_old_lines(tmp_path):
    write_run(tmp_path, range(1, 4))
    write_run(tmp_path, [1])
    assert [record["step"] for record in records(tmp_path)] == [1]


def test_tensorboard_purges_what_comes_after_the_restored_step(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write_run(tmp_path, [7], restored_step=6)
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:  # a record is: length u64, its checksum u32, the event, its checksum u32
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert any(event.HasField("session_log") and event.step == 7 for event in events)
    logged = {v.tag: v.simple_value for event in events for v in event.summary.value}
    assert logged["loss"] == np.float32(1 / 7)


def test_pictures_are_written_as_one_grid(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    tracker = Trackers(tmp_path)
    tracker.images(20, {"preview/ema": images}, ["a", "b", "c"])
    tracker.close()
    sheet = np.asarray(Image.open(tmp_path / "images" / "preview_ema_00000020.png"))
    assert sheet.shape == (8, 10, 3)
    np.testing.assert_array_equal(sheet[:4, 5:], images[1])
    np.testing.assert_array_equal(sheet[4:, :5], images[2])
    assert (sheet[4:, 5:] == 255).all()


def test_the_drawing_is_handed_the_captions(tmp_path):
    seen = []

    def draw(images, captions):
        seen.append(captions)
        return tile(images)

    tracker = Trackers(tmp_path, draw=draw)
    tracker.images(1, {"preview": np.zeros((1, 2, 2, 3), np.uint8)}, ["a cat"])
    tracker.close()
    assert seen == [["a cat"]]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"preview/prompts" in file.read_bytes() and b"a cat" in file.read_bytes()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_run(tmp_path / "run", [1])
    assert not (tmp_path / "run").exists()


class Bucket:
    """An object store's file: written whole or not at all, never appended to."""

    def __init__(self, text=None):
        self.text, self.writes = text, 0

    def __fspath__(self):
        return "gs://bucket/run/metrics.jsonl"

    def exists(self):
        return self.text is not None

    def read_bytes(self):
        assert self.text is not None
        return self.text.encode()

    def write_text(self, text):
        self.text, self.writes = text, self.writes + 1


def test_object_stores_are_rewritten_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(trackers, "time", types.SimpleNamespace(
        monotonic=lambda: now[0], time=lambda: now[0]
    ))  # fmt: skip
    bucket = Bucket('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"st')
    lines = trackers._Lines(bucket, restored_step=1)
    assert bucket.text == '{"step": 1, "loss": 1.0}\n'
    lines.write(2, {"loss": 0.25})
    assert bucket.writes == 1
    now[0] += trackers.REWRITE_SECONDS
    lines.write(3, {"loss": 0.125})
    assert bucket.writes == 2
    lines.write(4, {"loss": 0.0})
    lines.flush()
    assert [json.loads(line)["step"] for line in bucket.text.splitlines()] == [1, 2, 3, 4]


def test_wandb_is_refused_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # import wandb now fails
    with pytest.raises(UserError, match="pip install wandb"):
        Trackers(tmp_path, wandb=True)


def test_wandb_gets_the_same_numbers(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(options)
    fake.log = lambda numbers, step: calls.append((step, numbers))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    write_run(tmp_path, [2], wandb=True)
    assert calls[0]["resume"] == "allow"
    assert calls[1:] == [(2, {"loss": 0.5, "lr": 1e-5}), "finish"]
