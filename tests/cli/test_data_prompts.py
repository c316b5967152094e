"""``emu-jax data prompts``: information, neighbors against all cosines, and the command."""

import json

import numpy as np
import pytest
import torch

from emu_jax.cli.main import main
from emu_jax.data.distinct import Approximate, Exact, distinct, nearest_similarity
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import read_prompts
from emu_jax.text import scene_graph
from emu_jax.text.scene_graph import SceneGraphs, information

TEXTS = {
    "ff 0 0 0 0": 0,
    "An apple.": 0,
    "A purple car": 1,
    "A monkey holding a banana.": 1,
    "three red apples on a table next to a sleeping cat": 4,
    "": 0,
}


def test_the_information_is_that_of_one_entity():
    modifiers = [{"dep": dep} for dep in ("det", "amod", "nummod")]
    entities = [{"modifiers": modifiers}, {"modifiers": modifiers[:1]}, {"modifiers": []}]
    ends = [(1, 2), (1, 0), (1, 1)]
    relations = [{"subject": subject, "object": other} for subject, other in ends]
    assert information({"entities": entities, "relations": []}) == 2
    assert information({"entities": entities, "relations": relations[1:]}) == 3
    assert information({"entities": entities[1:], "relations": [{"subject": 0, "object": 1}]}) == 1
    assert information({"entities": [], "relations": []}) == 0


def test_the_parser_is_that_of_the_paper():
    """Many texts at a time, as its own package parses each of them."""
    pytest.importorskip("spacy")
    sng_parser = pytest.importorskip("sng_parser")
    found = SceneGraphs()(list(TEXTS))
    assert found == list(TEXTS.values())
    alone = sng_parser.Parser("spacy", model=scene_graph.MODEL)
    assert found == [information(alone.parse(text)) for text in TEXTS]
    for model in ("../en_core_web_sm", "en_core_web_none"):
        with pytest.raises(UserError, match="There is no installed package"):
            SceneGraphs(model)
    with pytest.raises(UserError, match="numpy is not a model that spaCy can read"):
        SceneGraphs("numpy")


def units(count, width=12):
    """Vectors in clusters, so that many have near neighbors."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(count // 8, width))
    vectors = centers[random.integers(0, len(centers), count)]
    vectors = vectors + 0.3 * random.normal(size=vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_chosen_text_removes_its_neighbors():
    vectors = units(2500)
    order = np.random.default_rng(1).permutation(2500)
    removed, expected = np.zeros(2500, bool), []
    for i in order:
        if not removed[i]:
            expected.append(i)
            removed |= vectors @ vectors[i] > 0.8
    found = distinct(order, lambda numbers: vectors[numbers], 0.8, Exact())
    assert found.tolist() == expected and 100 < len(found) < 2000
    pytest.importorskip("faiss")
    one, other = (
        distinct(order, lambda numbers: vectors[numbers], 0.8, Approximate()) for _ in range(2)
    )
    assert one.tolist() == other.tolist()
    cosines = vectors[one] @ vectors[one].T
    near = (cosines > 0.8).sum() - len(one)
    assert near <= 0.01 * len(one) and abs(len(one) - len(found)) <= 0.01 * len(found)


def test_the_similarity_to_the_nearest_neighbor():
    vectors = units(1500)
    numbers = np.array([*range(1400), 3, 3])
    cosines = vectors[numbers] @ vectors[numbers].T
    np.fill_diagonal(cosines, -2)
    found = nearest_similarity(numbers, lambda numbers: vectors[numbers], 0)
    assert found == pytest.approx(float(np.minimum(cosines.max(1), 1).mean()), abs=1e-5)
    assert np.isnan(nearest_similarity(numbers[:1], lambda numbers: vectors[numbers], 0))


class Counted:
    """A parser: the information of a prompt is its last word."""

    settings = {"parser": "counted"}  # noqa: RUF012

    def __init__(self, *_):
        self.calls = 0

    def __call__(self, texts):
        return [int(text.split()[-1]) if text else 0 for text in texts]

    def close(self):
        pass


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(...)`` selects of 60 prompts: of 50 that say enough every 5 are alike."""
    monkeypatch.setattr(scene_graph, "SceneGraphs", Counted)
    prompts = [f"prompt  {i} {int(i < 50)}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(prompts[:30]))
    (tmp_path / "b.txt").write_text("\n".join([*prompts[30:], prompts[0]]))
    noise = 0.01 * np.random.default_rng(0).normal(size=(60, 64))
    vectors = np.eye(64)[np.arange(60) // 5] + noise
    table = {
        text: torch.tensor(vector, dtype=torch.float32)
        for text, vector in zip(prompts, vectors, strict=True)
    }
    torch.save(table, tmp_path / "vectors.pt")
    given = (f"{tmp_path}/a.txt", f"{tmp_path}/b.txt", f"--model={tmp_path}/vectors.pt")
    place = (f"--cache_dir={tmp_path}/cache", "--batch_size=16")

    def run(*more, out="active.tsv"):
        return main(["data", "prompts", *given, *place, f"--out={tmp_path}/{out}", *more])

    return run


def test_selection_by_the_command(command, tmp_path, monkeypatch, capsys):
    assert command() == 0
    out = capsys.readouterr().out
    assert "61 prompts; 50 say enough; 10 of these differ (exact search); 10 are" in out
    found = read_prompts(f"{tmp_path}/active.tsv")
    assert sorted(int(text.split()[1]) // 5 for text in found.prompts) == list(range(10))
    assert set(found.columns["information"]) == {"1"}
    about = json.loads((tmp_path / "active.json").read_text())
    assert about["similarity_random"] > about["similarity_selected"] + 0.2
    assert abs(about["similarity_selected"]) < 0.1

    # The same seed selects the same, another one others; nothing is parsed or encoded again.
    monkeypatch.setattr(Counted, "__call__", lambda *_: pytest.fail("parsed"))
    monkeypatch.setattr("emu_jax.assembly.vectors.place_model", lambda *_: pytest.fail("encoded"))
    for out, more in (("b.tsv", ()), ("c.tsv", ("--seed=1",)), ("d.tsv", ("--count=4",))):
        assert command(*more, out=out) == 0
    tables = {name: (tmp_path / f"{name}.tsv").read_text() for name in ("active", "b", "c", "d")}
    assert tables["b"] == tables["active"] != tables["c"]
    assert tables["active"].startswith(tables["d"]) and tables["d"].count("\n") == 5
    assert command("--count=40", "--similarity=1") == 0
    assert len(read_prompts(f"{tmp_path}/active.tsv")) == 40
    capsys.readouterr()
    assert command("--count=40") == 0
    assert "--count=40 are not left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--least=2",), "None of 60 prompts has an information of 2 or more"),
        (("--similarity=2",), "use a number from 0 to 1"),
        (("--select=kind == a",), "no column 'kind'"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(command, arguments, said, capsys):
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]


def test_packages_that_are_missing_are_named(command, monkeypatch, capsys):
    assert command(out="active.txt") == 2
    assert "name it FILE.tsv" in capsys.readouterr().err
    monkeypatch.setattr(scene_graph, "SceneGraphs", SceneGraphs)
    monkeypatch.setattr(scene_graph, "find_spec", lambda _: None)
    assert command() == 2
    assert "needs the package spacy: pip install 'emu_jax[prompts]'" in capsys.readouterr().err
