"""``emu-jax compare``: one HTML file, a column a model, a row a prompt."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from emu_jax.assembly import comparing
from emu_jax.cli.main import main
from emu_jax.evaluation.comparison import short_names
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.prompts import KEPT_CONCEPTS
from emu_jax.evaluation.references import Sets

MALICIOUS = "<script>alert('a disc')</script>"


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.images, self.heads = set(), [], [], []
        self._in_head = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._within = tag == "wbr"  # a text that may break where it goes on
        self._in_head = tag == "th" or (self._in_head and self._within)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._in_head = False

    def handle_data(self, data):
        if self._in_head:
            self.heads.append((self.heads.pop() if self._within else "") + data)


@pytest.fixture(scope="module")
def report(generator_run, tmp_path_factory):
    """A run against its own exported model; (run, model, the report's folder)."""
    folder = tmp_path_factory.mktemp("compared")
    model, out = folder / "model", folder / "report"
    assert main(["export", str(generator_run), f"--out={model}"]) == 0
    (folder / "prompts").write_text(f"a red disc\n{MALICIOUS}\n")
    arguments = [str(generator_run), str(model), f"--prompts={folder}/prompts", f"--out={out}"]
    assert main(["compare", *arguments, "--batch_size=2", "--steps=6", "--judge="]) == 0
    return generator_run, model, out


@pytest.fixture(scope="module")
def page(report):
    return Page((report[2] / "index.html").read_text())


def test_the_report_needs_nothing_but_itself(page):
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe"}


def test_every_model_has_its_column_and_every_prompt_its_row(report, page):
    run, model, _ = report
    labels = short_names([str(run), str(model)]).values()
    assert {*labels, "a red disc", MALICIOUS} <= set(page.heads)
    assert len(page.images) == 4


def test_the_run_shows_its_curves(page, report):
    assert "svg" in page.tags
    text = (report[2] / "index.html").read_text()
    assert "generator/loss" in text


def test_the_same_weights_draw_nearly_the_same(page):
    """Prompt and noise are shared: the model's bf16 is all that differs."""
    tiles = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int)
        for uri in page.images
    ]
    (run_a, model_a), (run_b, model_b) = tiles[:2], tiles[2:]
    between = np.abs(run_a - run_b).mean()
    assert between > 8
    assert np.abs(run_a - model_a).mean() < 0.5 * between
    assert np.abs(run_b - model_b).mean() < 0.5 * between


def test_figures_are_broken_down_and_real_images_shown_without_a_judge(
    generator_run, pictures, tmp_path
):
    prompts = (
        "--prompts=folder/tiny:key != none",
        "--select=prompt != a black disc",
        "--by=source",
    )
    more = ("--count=4", "--metrics=contrast,color_distance", "--judge=", "--steps=2")
    more += (f"--data_dir={pictures}", "--needles=folder/tiny", "--kept=", f"--out={tmp_path}")
    assert main(["evaluate", str(generator_run), *prompts, *more]) == 0
    record = json.loads((tmp_path / "evaluate.json").read_text())
    (source,) = (name for name in record["categories"]["n"] if name != "all prompts")
    assert record["categories"]["n"] == {source: 4, "all prompts": 4}
    figures = record["categories"]["figures"]
    assert figures.keys() == {"contrast"}  # of a distance there is no value per image
    for name in (str(generator_run), "real pictures"):
        whole = record["metrics"]["contrast"]["figures"][name]
        assert figures["contrast"][name] == {source: whole, "all prompts": whole}
    page = Page((tmp_path / "index.html").read_text())
    assert {"details", "summary"} <= page.tags and "real images" in page.heads
    assert len(page.images) == 8


@pytest.fixture(scope="module")
def judged(generator_run, judge_run, pictures, tmp_path_factory):
    """The folder of a judged comparison of a run with itself, prompts from a set's captions."""
    out = tmp_path_factory.mktemp("judged")
    sets = (
        "--captions=folder/tiny",
        "--needles=folder/tiny:width == 72",
        "--haystack=folder/tiny",
        "--kept=folder/tiny",
        f"--data_dir={pictures}",
    )
    arguments = [f"--judge={judge_run}", *sets, "--count=6", f"--out={out}", "--steps=4"]
    models = [str(generator_run), f"{generator_run}@2"]
    metrics = "--metrics=contrast,color_distance"
    assert main(["compare", *models, *arguments, "--batch_size=4", metrics]) == 0
    return out


def test_the_judged_report_and_its_json_say_the_same(judged, generator_run):
    record = json.loads((judged / "compare.json").read_text())
    assert len(set(record["prompts"])) == 6
    models = [str(generator_run), f"{generator_run}@2"]
    assert set(record["figures"]) == {*models, "real pictures"}
    page = Page((judged / "index.html").read_text())
    assert page.addresses and all(uri.startswith("data:image/") for uri in page.addresses)
    text = re.sub("</?(small|wbr)>", "", (judged / "index.html").read_text())
    for name in models:
        found = record["figures"][name]
        shown = record["pictures"][name]
        assert found["faithful"]["value"] == pytest.approx(np.mean(shown["faithful"]))
        assert found["finish"]["value"] == pytest.approx(np.mean(np.array(shown["finish"]) > 0.5))
        for key in ("faithful", "copied"):
            value, low, high = (found[key][k] for k in ("value", "low", "high"))
            assert low <= value <= high
            assert f"{value:.0%} ({low:.0%} to {high:.0%})" in text
        facts = record["models"][name]
        assert 0 < facts["kept_loss"] < 10
        assert facts["parameters"] > 0 and facts["evaluations"] == 8
        # Forward and backward of a call at the least; the encoders run in this step besides.
        assert facts["training_flops"] > 2.5 * facts["flops"] / facts["evaluations"]
    # The real pictures are the needles themselves: every one is an exact copy.
    assert record["figures"]["real pictures"]["copied"]["value"] == 1.0
    pair = f"{models[1]} against {models[0]}"
    assert sum(record["duels"][pair]["finish"].values()) == pytest.approx(1.0)
    shares = [record["figures"][name]["faithful"]["value"] for name in models]
    lead = record["differences"][pair]["faithful"]
    assert lead["value"] == pytest.approx(shares[1] - shares[0])
    table, metrics = (judged / "figures.md").read_text().split("\n\n")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {name}" for name in (*short_names(models).values(), "real images")
    ]
    assert [line.split(" | ")[0] for line in metrics.splitlines()[2:]] == [
        "| contrast",
        "| color_distance",
    ]


def test_metrics_have_figures_and_differences_paired_by_prompt(judged, generator_run):
    record = json.loads((judged / "compare.json").read_text())
    models = [str(generator_run), f"{generator_run}@2"]
    contrast, distance = (record["metrics"][name] for name in ("contrast", "color_distance"))
    for name in (*models, "real pictures"):
        assert contrast["figures"][name] == record["figures"][name]["contrast"]
        assert contrast["figures"][name]["value"] == pytest.approx(
            np.mean(contrast["columns"][name])
        )
        assert distance["figures"][name]["value"] >= 0
    pair = f"{models[1]} against {models[0]}"
    for metric in (contrast, distance):
        first, second = (metric["figures"][name]["value"] for name in models)
        assert metric["differences"][pair]["value"] == pytest.approx(second - first)
        assert metric["images"] == 6
    text = re.sub("</?(small|wbr)>", "", (judged / "index.html").read_text())
    assert "Differences of metrics" in text and "6 images of each model" in text


def test_one_model_is_evaluated_with_the_same_figures(judged, generator_run, judge_run, pictures):
    before = json.loads((judged / "compare.json").read_text())
    out = judged / "one"
    sets = [f"--{name}=folder/tiny" for name in ("captions", "haystack", "kept")]
    sets.append("--needles=folder/tiny:width == 72")
    options = [f"--judge={judge_run}", *sets, f"--data_dir={pictures}", "--count=6"]
    arguments = [str(generator_run), *options, f"--out={out}", "--steps=4", "--batch_size=4"]
    assert main(["evaluate", *arguments]) == 0
    after = json.loads((out / "evaluate.json").read_text())
    assert after["prompts"] == before["prompts"]
    name = str(generator_run)
    assert after["figures"][name] == before["figures"][name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge=MODEL"], "is not a judge"),
        (["--count=1000"], "1000"),
        (["--count=1"], "A judge needs 2 prompts or more for its intervals, not 1"),
        ([f"--prompts={os.devnull}"], "has no prompts: write one prompt per line"),
        (["--needles=folder/none"], "folder/none"),
        (
            ["--prompts=folder/tiny:key != none", "--prompt_column=captions,source"],
            "2 columns for 1 models",
        ),
        (["--count_each=2"], "--count_each needs --prompts"),
    ],
)
def test_what_cannot_be_judged_is_said(
    arguments, said, generator_run, judge_run, pictures, tmp_path, capsys
):
    given = [a.replace("MODEL", str(generator_run)) for a in arguments]
    rest = [f"--{name}=folder/tiny" for name in ("captions", "needles", "haystack", "kept")]
    command = [str(generator_run), f"--judge={judge_run}", *rest, f"--data_dir={pictures}", *given]
    assert main(["compare", *command, f"--out={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_a_mistyped_metric_is_answered_with_the_nearest_name(capsys):
    assert main(["compare", "builtin:masked_64", "--metrics=contrast,sharpnes"]) == 2
    assert "'sharpnes' is unknown" in (said := capsys.readouterr().err)
    assert "did you mean sharpness?" in said


def test_a_model_that_is_named_twice_is_refused(capsys):
    assert main(["compare", *["builtin:masked_64"] * 2, "--judge=", "--prompts=sur"]) == 2
    assert "builtin:masked_64 is named twice" in capsys.readouterr().err


def test_the_default_prompts_are_distinct():
    assert len(set(KEPT_CONCEPTS)) == len(KEPT_CONCEPTS) >= 24


def test_a_parser_reads_what_scenes_show(generator_run, parser_run, scenes, tmp_path, capsys):
    prompts = "--prompts=scenes/openmoji_tiny:kind != single"
    more = ("--judge=", "--steps=2", "--count_each=3", f"--data_dir={scenes}", f"--out={tmp_path}")
    more += (
        "--prompt_column=simple,complex",
        "--images_per_prompt=2",
        "--metrics=contrast",
        "--blind=3",
    )
    models = [str(generator_run)] * 2
    assert main(["compare", *models, prompts, f"--parser={parser_run}", *more]) == 0
    record = json.loads((tmp_path / "compare.json").read_text())
    contents = record["contents"]
    names = (f"{generator_run} (simple)", f"{generator_run} (complex)", "real pictures")
    assert record["images_per_prompt"] == 2
    assert record["prompts"][::2] == record["prompts"][1::2]  # the simple ones
    contrast = record["metrics"]["contrast"]["columns"]
    assert len(contrast[names[0]]) == len(record["prompts"]) == 2 * 3 * 5  # of five kinds
    assert len(set(contrast[names[0]])) > 15  # each image has a seed of its own
    assert contrast[names[0]] != contrast[names[1]]  # another text
    assert contents["parser"]["path"] == str(parser_run)
    for name in names:
        images = contents["images"][name]
        assert 0 < len(images) < len(record["prompts"])  # without those of persons
        for figure in ("count", "things"):
            share = np.mean([image[figure] for image in images])
            assert contents["figures"][name]["all"][figure]["value"] == pytest.approx(share)
    assert {"two", "action", "count", "color"} < contents["figures"][names[0]].keys()
    key = json.loads((tmp_path / "blind_key.json").read_text())
    assert {one["model"] for one in key} == set(names[:2]) and (tmp_path / "blind.png").exists()
    assert all(one["prompt"] == record["prompts"][one["image"]] for one in key)
    table = (tmp_path / "figures.md").read_text().split("\n\n")[1].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        f"| {generator_run.name} (simple)",
        f"| {generator_run.name} (complex)",
        "| real images",
    ]
    page = Page((tmp_path / "index.html").read_text())
    assert "right" in (text := (tmp_path / "index.html").read_text()) and "2 images each" in text
    assert "real images" in page.heads
    named = ["evaluate", str(generator_run), f"--parser={parser_run}", f"--out={tmp_path}"]
    (tmp_path / "prompts.txt").write_text("a red disc")
    capsys.readouterr()
    assert main([*named, f"--prompts={tmp_path}/prompts.txt", "--judge="]) == 2
    assert "--parser reads what prompts ask for, and these do not say it" in capsys.readouterr().err


def test_the_judge_reads_prompts_without_their_weights(monkeypatch):
    class Seen(Exception):
        pass

    def yardstick(scorer, sets, prompts):
        raise Seen(prompts.prompts)

    monkeypatch.setattr(comparing, "Judge", str)
    monkeypatch.setattr(comparing, "yardstick", yardstick)
    prompts, changes = PromptSet(("a (red)2 disc", "b")), {"prompt_weighting": "compel"}
    with pytest.raises(Seen) as seen:
        comparing.compare(["m"], "out", Sets("data"), prompts=prompts, judge="j", changes=changes)
    assert seen.value.args == (("a red disc", "b"),)
