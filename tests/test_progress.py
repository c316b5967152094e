"""Progress: a bar on a terminal, elsewhere plain lines."""

import io

from emu_jax import progress as module
from emu_jax.progress import Progress, compiling, watch


class Terminal(io.StringIO):
    def isatty(self):
        return True


def training(stream, clock, **options):
    options = dict(unit="img", each=8, eager=True, stream=stream, clock=clock) | options
    return Progress("step", 1000, **options)


def test_training_prints_now_and_then_with_speed_and_time_left():
    now, stream = [0.0], io.StringIO()
    progress = training(stream, lambda: now[0], start=100)
    now[0] = 60.0  # compiled
    progress.update(101, "loss 2")
    now[0] = 65.0
    progress.update(106, "loss 3")
    now[0] = 80.0
    progress.update(121, "loss 1.5")
    now[0] = 81.0
    progress.update(1000, "loss 1.25")
    first, second, last = stream.getvalue().splitlines()
    assert first == "step 101/1000: loss 2"  # no speed yet: that step was compilation
    assert second == "step 121/1000: 8 img/s, loss 1.5, 14:39 left"  # 20 steps in 20 s, 879 to go
    assert last.startswith("step 1000/1000:") and last.endswith("0:00 left")
    assert "\r" not in stream.getvalue()


def test_a_terminal_has_the_text_once():
    stream, now = Terminal(), [0.0]
    with training(stream, lambda: now[0]) as progress:
        for step in range(1, 1001):
            now[0] += 1.0
            progress.update(step, "loss 0.5")
        progress.message("saved")
    shown = [part for part in stream.getvalue().split("\r") if "1000/1000" in part]
    assert shown and all(part.count("loss 0.5") == 1 for part in shown)
    assert "8 img/s, loss 0.5, 0:00 left" in shown[-1] and "100%|" in shown[-1]
    assert "saved\n" in stream.getvalue()


def test_short_work_leaves_no_line_in_a_log(capsys, monkeypatch):
    assert list(watch(range(3), "images", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "SECONDS", 0.0)  # as if each took long
    assert list(watch(iter("abc"), "images", 3, compiles="the sampler")) == ["a", "b", "c"]
    compiled, done, two, three = capsys.readouterr().err.splitlines()
    assert compiled == "compiling the sampler" and done.startswith("compiled the sampler in 0:0")
    assert two.startswith("images 2/3: ") and "images/s" in two
    assert three.startswith("images 3/3: ") and three.endswith("0:00 left")


def test_only_the_first_process_prints(capsys):
    with Progress("step", 10, unit="img", eager=True, visible=False) as progress:
        progress.update(1, "loss 1")
        with compiling("the training step", progress.message):
            pass
    assert capsys.readouterr().err == ""
