"""Statistics of captions and prompts, counted by hand, and their page."""

from xml.etree import ElementTree

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation import curves
from emu_jax.evaluation.text_statistics import (
    comma_phrases,
    neighbors,
    statistics,
    words,
    write_statistics,
)


def test_words_and_phrases():
    assert words("Don't stop: the T-rex, 2 eyes_open") == [
        *("don't", "stop", "the", "t-rex", "2", "eyes", "open")
    ]
    text = "(Masterpiece:1.3), best  quality,, ((sharp focus)), <lora:x:1> hair++, 16:9, ."
    assert comma_phrases(text) == ["masterpiece", "best quality", "sharp focus", "hair", "16:9"]
    assert neighbors("A big red car is here. Fox") == ["big red", "red car", "big red car"]


def test_counts_are_of_texts():
    found = statistics(["a red cat, a red cat", "red dog", "the"], comma_phrases)
    assert found.lengths.tolist() == [6, 2, 1]
    assert found.words == [("red", 2), ("cat", 1), ("dog", 1)]
    assert found.phrases == [("a red cat", 1), ("red dog", 1), ("the", 1)]


def test_a_histogram_has_a_bar_for_each_bin():
    plot = ElementTree.fromstring(curves.histogram(np.array([0, 1, 1, 300]), title="<&"))
    heights = [float(x.get("height")) for x in plot.iter("rect")]
    assert len(heights) == 31  # bins of 10
    assert heights[0] == pytest.approx(3 * heights[-1], abs=0.2)
    assert not any(heights[1:-1])
    widths = [
        float(x.get("width"))
        for x in ElementTree.fromstring(curves.bar_plot({"<a>": 4, "b" * 50: 2})).iter("rect")
    ]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)


def test_the_page(tmp_path):
    evil = "<script>x</script>"
    prompt = f"{evil}, best quality, " + "hair " * 400
    path = write_statistics(tmp_path / "page.html", evil, ["a red cat"] * 3, [prompt] * 3)
    text = path.read_text()
    assert "<script" not in text
    for said in ("best quality", "red cat", "hair", "3 pairs", "They are not only nouns"):
        assert f">{said}" in text or f" {said}" in text
    assert "more than 300 words count as 300" in text
    with pytest.raises(UserError, match="has no pairs"):
        write_statistics(tmp_path / "none.html", "x", [], [])
