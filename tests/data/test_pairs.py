"""Pairs of a caption and a prompt: which are kept, the control, the list that a person marks."""

import pytest
from etils import epath

from emu_jax.data.pairs import (
    COMPLEX_WINS,
    Pair,
    exchange,
    passing,
    read_rejected,
    write_checklist,
)
from emu_jax.errors import UserError


def pair(name, text_score, prompt_score, pixels=""):
    return Pair(name, "text", "prompt", text_score, prompt_score, pixels or name)


def test_a_pair_passes_whose_simple_caption_is_at_least_as_similar():
    kept, reasons = passing(
        [
            *(pair("a", 0.3, 0.2), pair("b", 0.2, 0.3), pair("equal", 0.25, 0.25)),
            *(pair("c", 0.1, 0.2, "x"), pair("d", 0.3, 0.2, "x"), pair("e", 0.9, 0.2, "x")),
            pair("nan", float("nan"), 0.2),
        ]
    )
    assert [p.name for p in kept] == ["a", "equal", "d"]
    assert reasons == {
        **dict.fromkeys(("b", "c", "nan"), COMPLEX_WINS),
        "e": "it has the same pixels as d",
    }


def test_wrong_captions_are_those_of_other_images():
    captions = {str(i): f"caption {i % 5}" for i in range(100)}
    wrong = exchange(captions, 0.2, seed=3)
    assert len(wrong) == 20 and wrong == exchange(captions, 0.2, seed=3)
    assert all(text != captions[name] and text in captions.values() for name, text in wrong.items())
    assert wrong.keys() != exchange(captions, 0.2, seed=4).keys()
    assert exchange(captions, 0.0, seed=0) == {}
    with pytest.raises(UserError, match="All simple captions are equal"):
        exchange(dict.fromkeys("abcde", "a cat"), 0.2, seed=0)


def test_the_list_comes_back_as_it_was_marked(tmp_path):
    names = [
        "a.png",
        "deep/ b [x].png",
        "[x] c.png",
        "# d.png",
        "line\nend.png",
        " e.png",
        '"f.png',
    ]
    path = epath.Path(tmp_path / "check.txt")
    pairs = [pair(name, 0.3, 0.2) for name in names]
    write_checklist(path, pairs, names[1::2])
    assert read_rejected(path, names) == set(names[1::2])
    assert len(path.read_text().splitlines()) == 2 + len(names)
    path.write_text(path.read_text().replace("[ ] a.png", " [X]  a.png "))
    assert read_rejected(path, names) == {"a.png", *names[1::2]}
    path.write_text("# none\n\n[ ] a.png\r\n[] deep/ b [x].png\n")
    assert read_rejected(path, names) == set()
    path.write_text("deep/ b [x].png\n")  # a bare name
    assert read_rejected(path, names) == {"deep/ b [x].png"}
    path.write_text("[ ] a.png\n[x] g.png\n")
    with pytest.raises(UserError, match=r"line 2 names no image of the collection: 'g\.png'"):
        read_rejected(path, names)
