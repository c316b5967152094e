import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from emu_jax.errors import UserError
from emu_jax.evaluation import curves, report
from emu_jax.evaluation.curves import Curve
from emu_jax.training.trackers import Trackers


class Page(HTMLParser):
    """What a browser would make of it: all text, all pictures, whether every tag is closed."""

    VOID = frozenset({"meta", "img", "wbr", "!doctype"})

    def __init__(self, page):
        super().__init__()
        self.texts, self.sources, self.links, self.open = [], [], [], []
        self.within = False  # a text that may break where it goes on
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.within = tag == "wbr"
        attrs = dict(attrs)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.texts.pop() if self.within else "") + data)
        self.within = False


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)


def decode(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_a_report_is_one_file_that_needs_nothing_else(tmp_path, image):
    steps = np.arange(10.0)
    evil = '<script src="http://x">&"'
    path = report.write_report(
        tmp_path / "out" / "index.html",
        evil,
        [
            report.Text(evil, f"{evil}\n\nsecond"),
            report.Table(evil, [evil], [[evil], [1.23456789], [12345], [None]], note=evil),
            report.ImageTable(evil, [evil, "b"], [(evil, [report.Tile(image, evil), None])]),
            report.Charts(evil, [evil], curves.charts({evil: {evil: Curve(steps, steps)}})),
        ],
        subtitle=evil,
    )
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert "<script" not in text and not page.links and "url(" not in text
    assert page.texts.count(evil) == 16
    assert {"1.235", "12,345"} <= set(page.texts)
    (source,) = page.sources
    np.testing.assert_array_equal(decode(source), image)


def test_large_pictures_are_stored_lossily_and_close(image):
    smooth = np.asarray(Image.fromarray(image).resize((400, 300), Image.Resampling.BICUBIC))
    source = report.data_uri(smooth)
    assert source.startswith("data:image/webp;")
    assert np.abs(decode(source).astype(int) - smooth).mean() < 8


def test_metrics_come_back_as_the_tracker_wrote_them(tmp_path):
    tracker = Trackers(tmp_path)
    tracker.scalars(1, {"loss": 0.1, "val": float("inf")})
    tracker.scalars(3, {"loss": 0.3})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a run still under way
    metrics = curves.read_metrics(tmp_path)
    assert list(metrics) == ["loss", "val"]
    np.testing.assert_array_equal(metrics["loss"].steps, [1, 3])
    np.testing.assert_array_equal(metrics["loss"].values, [0.1, 0.3])
    np.testing.assert_array_equal(metrics["val"].values, [np.inf])


def test_a_folder_that_is_no_run_and_a_broken_line_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        curves.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('oops\n{"step": 1, "loss": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        curves.read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, None), (1e-7, 9e-7, None), (-40, 950, None)],
)
def test_ticks_are_round_and_take_in_the_range(low, high, expected):
    found = curves.ticks(low, high)
    assert expected is None or found == pytest.approx(expected)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 9
    assert f"{found[1] - found[0]:.0e}"[0] in "125"


def lines(svg):
    found = re.findall(r'<polyline points="([^"]*)".*?var\(--line-(\d)\)', svg)
    return {
        int(colour): np.array([p.split(",") for p in pts.split()], float) for pts, colour in found
    }


def test_a_line_goes_where_its_numbers_say():
    steps = np.array([0.0, 50.0, 100.0])
    svg = curves.line_plot({"a": Curve(steps, np.array([0.0, 1.0, 2.0]))})
    ElementTree.fromstring(svg)
    (first, middle, last) = lines(svg)[0]
    np.testing.assert_allclose(middle, (first + last) / 2, atol=0.1)  # a straight line stays one
    assert first[0] < last[0] and first[1] > last[1]  # to the right, and upwards


def test_one_outlier_does_not_flatten_the_rest():
    values = np.linspace(1.0, 0.0, 150)
    values[70] = 1000.0
    (line,) = lines(curves.line_plot({"a": Curve(np.arange(150.0), values)})).values()
    assert np.ptp(line[:, 1]) > 150
    assert line[0, 1] < 80 and line[-1, 1] > 180


def test_long_curves_are_thinned_to_their_means():
    steps = np.arange(10_000.0)
    values = np.where(np.arange(10_000) % 2, 0.0, 2.0)
    (line,) = lines(curves.line_plot({"a": Curve(steps, values)}, title="a")).values()
    assert len(line) <= 200
    assert np.ptp(line[:, 1]) == 0  # every mean is 1


def test_a_run_keeps_its_colour_where_another_lacks_the_metric():
    steps = np.arange(3.0)
    both = {"loss": Curve(steps, steps)}
    drawn = curves.charts({"a": both, "b": both | {"val": Curve(steps, steps * np.nan + 1)}})
    assert set(lines(drawn["loss"])) == {0, 1}
    assert "val" not in drawn  # nothing finite in it
    drawn = curves.charts({"a": both, "b": {"val": Curve(steps, steps)}})
    assert set(lines(drawn["val"])) == {1}


def test_a_marked_step_is_an_upright_line_through_its_point():
    steps = np.array([0.0, 50.0, 100.0])
    svg = curves.line_plot(
        {"a": Curve(steps, steps), "b": Curve(steps, steps)}, marks={"b": 50, "c": 1, "a": 999}
    )
    ((x,),) = [re.findall(r"M([\d.]+) ", p) for p in re.findall(r'class="mark" d="([^"]*)"', svg)]
    assert float(x) == pytest.approx(lines(svg)[1][1, 0], abs=0.1)
    assert 'class="mark"' in svg and svg.count("--line-1") == 2


def test_many_columns_of_images_fit_the_page():
    def widths(columns):
        names = [f"runs/{i}" for i in range(columns)]
        row = ("a fox", [report.Tile(np.zeros((8, 6, 3), np.uint8))] * columns)
        body = report.ImageTable("", names, [row]).body()
        assert " width=" not in body  # which could not shrink on a phone
        return {int(width) for width in re.findall(r"--width:(\d+)px", body)}

    assert widths(2) == {160}
    (six,) = widths(6)
    assert six > 96 and 6 * (six + 16) <= 900
    assert widths(40) == {96}


def test_each_of_many_runs_has_a_look_of_its_own():
    steps = np.arange(3.0)
    runs = {f"run {i}": {"loss": Curve(steps, steps + i)} for i in range(20)}
    svg = curves.charts(runs)["loss"]
    looks = re.findall(r'<polyline points="[^"]*" ([^/]*)/>', svg)
    assert len(looks) == len(set(looks)) == 20
    keys = re.findall(r'<path d="M0 3H28" ([^/]*)/>', report.Charts("", list(runs), {}).body())
    assert keys == looks


def test_losses_of_different_objectives_have_different_axes():
    steps = np.arange(3.0)
    one = {"loss": Curve(steps, steps), "samples/faithful": Curve(steps, steps / 4)}
    other = {"loss": Curve(steps, 10 + steps), "samples/faithful": Curve(steps, steps / 3)}
    runs = {"a": one, "b": other, "c": one}
    objectives = {"a": "noise", "b": "tokens", "c": "noise"}
    plots = curves.charts(runs, objectives=objectives, shares=["samples/faithful"])
    assert {name: set(lines(svg)) for name, svg in plots.items()} == {
        "loss: noise": {0, 2},
        "loss: tokens": {1},
        "samples/faithful": {0, 1, 2},
    }
    assert "%</text>" in plots["samples/faithful"] and "%</text>" not in plots["loss: noise"]
    assert list(curves.charts(runs, ["loss"], objectives=dict.fromkeys(runs, "x"))) == ["loss"]


def test_an_interval_stands_below_its_value():
    text = "35% (26% to 45%)"
    body = report.Table("", ["a"], [[text], ["a/b+3"], ["+1%"], ["(a to b)"]]).body()
    assert "<td>35% <small>(26% to 45%)</small></td>" in body
    assert "<td>a/<wbr>b+3</td>" in body and "<td>+1%</td>" in body and "<td>(a to b)</td>" in body
