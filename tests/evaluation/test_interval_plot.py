import re
from xml.etree import ElementTree

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.curves import interval_plot, two_histograms
from emu_jax.evaluation.metrics import Interval


def drawn(svg):
    """Colour, and where value, low and high are, of every row; where the axis has which number."""
    whiskers = re.findall(r'd="M([\d.]+) [\d.]+v8m0 -4H([\d.]+)m.*?--line-(\d)', svg)
    dots = re.findall(r'<circle cx="([\d.]+)".*?--line-(\d)', svg)
    rows = {}
    for (low, high, colour), (value, same) in zip(whiskers, dots, strict=True):
        assert colour == same
        rows[int(colour)] = [float(value), float(low), float(high)]
    ticks = re.findall(r'<text x="([\d.]+)"[^>]*"middle">([-\d.]+)<', svg)
    return rows, np.array(ticks, float)


def test_dots_and_whiskers_are_where_the_axis_says():
    rows = {"a": Interval(0.5, 0.4, 0.7), "b": Interval(-0.2, -0.3, 0.1), "c": Interval(0, 0, 0)}
    found, ticks = drawn(interval_plot(rows))
    places, numbers = ticks.T
    assert numbers.min() <= -0.3 and numbers.max() >= 0.7
    for i, row in enumerate(rows.values()):
        np.testing.assert_allclose(found[i], np.interp(row, numbers, places), atol=0.1)


def test_rows_keep_order_and_colour_and_everything_stays_in_the_picture():
    rows = {f"{'long ' * 20}{i}": (i, i - 1, i + 1) for i in range(8)} | {"gone": (np.nan, 0, 1)}
    svg = interval_plot(rows)
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    dots = [node.attrib for node in root if node.tag == "circle"]
    assert [dot["fill"] for dot in dots] == [f"var(--line-{i})" for i in range(8)]
    heights = [float(dot["cy"]) for dot in dots]
    assert heights == sorted(set(heights)) and heights[-1] < height
    assert all(width / 2 < float(dot["cx"]) < width for dot in dots)
    labels = [node.text for node in root if node.get("text-anchor") == "end"]
    assert len(labels) == 9 and labels[-1] == "gone" and labels[0].startswith("...")


@pytest.mark.parametrize("rows", [{"a": (1, 1, 1)}, {"a": (0, 0, 0)}, {"a": (0.99, 0.93, 1.0)}])
def test_the_axis_of_a_share_stays_between_0_and_1(rows):
    svg = interval_plot(rows, limits=(0.0, 1.0))
    ticks = [float(text) for text in re.findall(r'"middle">([-\d.]+)%<', svg)]
    assert 0 <= min(ticks) < max(ticks) <= 100
    assert min(ticks) <= 100 * rows["a"][1] and max(ticks) >= 100 * rows["a"][2]
    assert drawn(svg)[0]  # the row itself is there


def test_text_is_escaped_and_nothing_is_no_plot():
    evil = '<b a="&">'
    root = ElementTree.fromstring(interval_plot({evil: (1, 0, 2)}, evil))
    assert root.get("aria-label") == evil and evil in [node.text for node in root]
    for rows in ({}, {"a": (np.nan, 0, 1)}):
        with pytest.raises(UserError, match="nothing to plot in wins"):
            interval_plot(rows, "wins")


def test_two_histograms_show_shares_and_what_lies_beyond():
    whole = np.concatenate([np.full(60, 0.0), np.full(39, 10.0), [1e6]])
    plot = two_histograms(whole, np.full(7, 10.0), title="<score>", x_label="x")
    heights = [float(x) for x in re.findall(r'height="([\d.]+)" fill', plot)]
    shown = [height for height in heights if height]
    assert len(heights) == 40 and len(shown) == 2  # the outlier widens no bin
    assert shown[0] / shown[1] == pytest.approx(60 / 40, rel=0.01)
    assert "100%" in plot and "&lt;score&gt;" in plot and "<score>" not in plot
