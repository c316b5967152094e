"""A few cases of each kind of hostile input (``tests/fuzz.py``), in this process."""

import contextlib
import sys
import time

import fuzz
import pytest

COUNTS = dict(
    configs=20, captions=30, images=30, models=12, checkpoints=5, tokenizers=6, adapters=12
)


@pytest.fixture(scope="module")
def material(pictures, autoencoder_run, generator_run, tmp_path_factory):
    home = tmp_path_factory.mktemp("hostile")
    return fuzz.Material(home, pictures, autoencoder_run, generator_run, pipelines=("sd15",))


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_hostile_input_is_accepted_or_refused_in_one_sentence(kind, material, tmp_path):
    counts, failures = fuzz.fuzz(kind, material, tmp_path, COUNTS[kind])
    if failures:
        # Without the frames of the failure: some are too deep for pytest to show. Lone surrogates
        # of a case cannot be sent to another process as they are.
        text = "\n".join(failures).encode("utf-8", "backslashreplace").decode()
        pytest.fail(text, pytrace=False)
    assert counts["refused"] >= COUNTS[kind] // 8  # else the cases damage nothing


def lost():
    """An alarm that is ignored, as Python does in some callbacks."""
    with contextlib.suppress(fuzz.Hang):
        time.sleep(2)


def deep():
    deeper()


def deeper():
    deep()


def test_the_guard_notices_what_a_case_must_not_do(material, tmp_path, monkeypatch):
    """Reading a neighbour, running its code, starting a process, a second line, a traceback."""
    deeds = {
        f"opened {tmp_path}/{fuzz.SECRET}/config.json": f"open('../{fuzz.SECRET}/config.json')",
        "opened ": "open('/root/elsewhere')",
        f"executed {tmp_path}/{fuzz.HOSTILE}": (
            f"exec(compile('1', {f'{tmp_path}/{fuzz.HOSTILE}'!r}, 'exec'))"
        ),
        "os.system": "__import__('os').system('true')",
        "status 2": "print('emu-jax: one\\nemu-jax: two', file=__import__('sys').stderr)",
        "ZeroDivisionError": "1 / 0",
        "RecursionError": "deep()",
        "2 s of a processor": "sum(0 for _ in iter(int, 1))",
        "Hang": "time.sleep(2)",
        "Hang: longer": "(lost(), time.sleep(2))",
        "MiB of memory": "b'x' * 2**28",
    }
    monkeypatch.setattr(fuzz, "MEMORY", 2**26)
    for number, (why, deed) in enumerate(deeds.items()):

        def refused(argv, deed=deed):
            with contextlib.suppress(FileNotFoundError):
                eval(deed)
            return 2

        monkeypatch.setattr(fuzz, "LIMIT", 2 if "processor" in why else 60)
        monkeypatch.setattr(fuzz, "WAIT", 1 if why.startswith("Hang") else 60)
        monkeypatch.setattr("emu_jax.cli.main.main", refused)
        monkeypatch.setitem(fuzz.KINDS, "deed", lambda material: lambda folder, chance: ["deed"])
        _, (failure,) = fuzz.fuzz("deed", material, tmp_path, 1, first=number)
        assert why in failure and failure.count("  File ") <= fuzz.FRAMES
    fuzz._alarm(0, sys._getframe())  # one that comes when the command has ended does nothing
