"""``emu-jax compare``: one HTML file, a column a model, a row a prompt."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from emu_jax.cli.main import main
from emu_jax.evaluation.prompts import KEPT_CONCEPTS

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
        self._in_head = tag == "th"
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._in_head = False

    def handle_data(self, data):
        if self._in_head:
            self.heads.append(data)


@pytest.fixture(scope="module")
def report(generator_run, tmp_path_factory):
    """A run against its own exported model; (run, model, the report's folder)."""
    folder = tmp_path_factory.mktemp("compared")
    model, out = folder / "model", folder / "report"
    assert main(["export", str(generator_run), f"--out={model}"]) == 0
    (folder / "prompts").write_text(f"a red disc\n{MALICIOUS}\n")
    arguments = [str(generator_run), str(model), f"--prompts={folder}/prompts", f"--out={out}"]
    assert main(["compare", *arguments, "--batch_size=2", "--steps=6"]) == 0
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
    assert {str(run), str(model), "a red disc", MALICIOUS} <= set(page.heads)
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


def test_the_default_prompts_are_distinct():
    assert len(set(KEPT_CONCEPTS)) == len(KEPT_CONCEPTS) >= 24
