"""Labels of models, the sections of a comparison, and its record."""

from dataclasses import replace

import numpy as np
import pytest

from emu_jax.evaluation import comparison
from emu_jax.evaluation.assessment import Assessment, Yardstick, assess
from emu_jax.evaluation.comparison import REAL, Drawn, short_names
from emu_jax.evaluation.memorisation import descriptors
from emu_jax.evaluation.metrics import Probe
from emu_jax.evaluation.report import ImageTable, Table
from emu_jax.nn.contrastive import ImageEmbedding

PATHS = {
    "/data/runs/latent/pretrain": "latent/pretrain",
    "/data/runs/latent/tuned@2000": "latent/tuned@2000",
    "/data/runs/latent/tuned": "latent/tuned",
    "runs/masked/pretrain/": "masked/pretrain",
    "runs/masked/tuned": "masked/tuned",
    "builtin:latent_diffusion_64": "builtin:latent_diffusion_64",
    "base": "base",
    "runs/base": "runs/base",
}


def test_names_are_short_and_unique():
    assert short_names(PATHS) == PATHS
    assert list(short_names(["a/b/c/one", "a/b/c/two"]).values()) == ["one", "two"]
    assert short_names(["a/b"]) == {"a/b": "b"}


def test_many_models_are_compared_with_the_first_only():
    assert comparison.pairs_of(["a", "b", REAL, "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert comparison.pairs_of("abcde") == [("a", x) for x in "bcde"]


@pytest.fixture
def judged():
    random, n = np.random.default_rng(0), 40
    image = np.zeros((4, 4, 3), np.uint8)

    def assessment(share):
        return Assessment(
            top1=random.random(n) < share,
            top5=np.ones(n, bool),
            belief=random.random(n),
            finish=random.random(n),
            features=random.normal(size=(n, 3)),
            distance=random.random(n),
            nearest=np.zeros(n, int),
            copied=np.zeros(n, bool),
            contrast=random.random(n),
        )

    by = Yardstick(
        prompts=[f"prompt {i}" for i in range(n)],
        texts=random.normal(size=(n, 3)),
        scale=1.0,
        probe=Probe(np.zeros(3), np.ones(3), np.ones(3), 0.0),
        needles=random.normal(size=(20, 3)),
        haystack=random.normal(size=(20, 3)),
        tuned=random.random((5, 3)),
        tuned_images=[image] * 5,
        bound=0.1,
    )
    found = {"runs/a": assessment(0.3), "runs/b": assessment(0.6), REAL: assessment(0.9)}
    return found, by, comparison.judged(found, by, {"runs/a": "a", "runs/b": "b"})


def test_a_repeated_prompt_is_not_its_own_rival(judged):
    """The same image for a prompt that stands twice is as faithful as where it stands once."""
    _, by, _ = judged
    texts = np.eye(4, 3)[[0, 1, 0, 2]]
    twice = replace(by, prompts=["a", "b", "a", "c"], texts=texts)
    once = replace(by, prompts=["a", "b", "c"], texts=texts[[0, 1, 3]])
    embedding = np.array([[0.9, 0.1, 0], [0.9, 0.1, 0], [0.9, 0.1, 0], [0, 0.1, 0.9]])
    features = np.random.default_rng(0).normal(size=(4, 3))
    image = np.zeros((16, 16, 3), np.uint8)
    by_size = {"tuned": descriptors(np.stack([image]))}

    def judge(by, rows):
        embedded = ImageEmbedding(embedding[rows], features[rows])
        return assess([image] * len(rows), embedded, replace(by, **by_size))

    both, single = judge(twice, [0, 1, 2, 3]), judge(once, [0, 1, 3])
    assert both.top1.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(both.belief[[0, 1, 3]], single.belief)


def test_the_record_has_full_names_and_the_report_short_ones(judged):
    _, _, (sections, record, table) = judged
    assert set(record["figures"]) == {"runs/a", "runs/b", REAL}
    assert set(record["differences"]) == {"runs/b against runs/a"}
    shown = next(section for section in sections if isinstance(section, Table))
    assert list(shown.columns) == ["", "a", "b", "real images"]
    bodies = "".join(section.body() for section in sections)
    assert "b against a" in bodies and "runs/" not in bodies
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| a",
        "| b",
        "| real images",
    ]


def test_a_share_of_0_or_1_has_an_interval(judged):
    _, _, (sections, record, _) = judged
    copied = record["figures"]["runs/a"]["copied"]
    assert copied["value"] == copied["low"] == 0 and 0.05 < copied["high"] < 0.15
    top5 = record["figures"]["runs/a"]["faithful_top5"]
    assert top5["value"] == top5["high"] == 1 and 0.85 < top5["low"] < 0.95
    assert "0% (0% to 0%)" not in str(sections)


def test_nearest_needles_and_models_name_the_model_once(judged):
    found, by, _ = judged
    image = np.zeros((4, 4, 3), np.uint8)
    facts = {
        "step": 5, "weights": "0" * 64, "parameters": 7, "training_flops": 1e9, "evaluations": 3,
        "flops": 2e9, "seconds": None, "kept_loss": 0.5,
        "sampling": {"sampler": "ddim", "steps": 4, "guidance_scale": 2},
    }  # fmt: skip
    models = [Drawn(name, [image] * 40, {**facts, "path": name}) for name in ("runs/a", "runs/b")]
    section = comparison.copies(models[0], "a", found["runs/a"], by)
    assert isinstance(section, ImageTable) and section.title == "Nearest needles: a"
    table = comparison.costs(models, {"runs/a": "a", "runs/b": "b"})
    assert list(table.columns) == ["", "a", "b"]
    assert ["path", "runs/a", "runs/b"] in table.rows and [
        "seconds per drawn image",
        None,
        None,
    ] in table.rows


def test_cells_of_markdown_are_escaped():
    assert comparison.markdown(["a"], [["b|c"]]) == "| a |\n| --- |\n| b\\|c |\n"
