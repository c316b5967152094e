"""A small study of two systems whose images are folders, and annotators who answer it."""

import json

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from emu_jax.cli.main import main
from emu_jax.people import store as stores
from emu_jax.people.access import add_annotators, lab_token
from emu_jax.people.dealing import deal
from emu_jax.people.lab import lab_routes
from emu_jax.people.store import open_store
from emu_jax.people.web import load_strings, make_app

stores.SYNCHRONOUS = "OFF"  # no test in this process ends with a loss of power

PROMPTS = [
    ("a red disc", "simple"),
    ('<b>a "blue" disc</b> & more', "markup"),
    ("قرص أخضر على خلفية بيضاء", "rtl"),
    ("a very long prompt, " * 12 + "of a disc", "long"),
    ("a disc in the style of a poster", "simple"),
    ("two discs", "simple"),
]
SYSTEMS = ("tuned_secret", "base_secret")


def write_images(root, prompts=PROMPTS, side=48):
    """A folder of images for each system; file names and metadata name the system."""
    for number, system in enumerate(SYSTEMS):
        folder = root / system
        folder.mkdir()
        lines = []
        for i, (prompt, _) in enumerate(prompts):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (side, side, 3), np.uint8)
            about = PngInfo()
            about.add_text("model", system)
            Image.fromarray(pixels).save(folder / f"{system}_{i}.png", pnginfo=about)
            lines.append(json.dumps({"file_name": f"{system}_{i}.png", "text": prompt.strip()}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))


def make(root, *more, prompts=PROMPTS):
    """A study made by the real command, in ``root / "study"``."""
    write_images(root, prompts)
    table = root / "prompts.tsv"
    table.write_text("prompt\tcategory\n" + "".join(f"{p}\t{c}\n" for p, c in prompts))
    systems = [str(root / name) for name in SYSTEMS]
    arguments = ["people", "compare", *systems, f"--prompts={table}", f"--out={root / 'study'}"]
    assert main([*arguments, "--no_serve", *more]) == 0
    return root / "study"


class Person:
    """An annotator with a browser's cookies."""

    def __init__(self, app, token):
        self.client = TestClient(app, follow_redirects=True)
        page = self.client.get(f"/a/{token}")
        self.page = page.text
        self.csrf = page.text.partition('data-csrf="')[2].partition('"')[0]

    @property
    def headers(self):
        return {"X-CSRF-Token": self.csrf}

    def state(self):
        return self.client.get("/state", headers=self.headers).json()

    def answer(self, task, answer, key=None, seconds=1.5):
        key = key or f"key of {task}"
        sent = {"task": task, "answer": answer, "key": key, "seconds": seconds}
        return self.client.post("/answer", json=sent, headers=self.headers)

    def finish(self, choose):
        """Answers everything by ``choose(task)``; returns the tasks in their order."""
        seen, state = [], self.state()
        while state["tasks"]:
            task = state["tasks"][0]
            seen.append(task)
            state = self.answer(task["id"], choose(task)).json()["state"]
        return seen


class Running:
    """A study with its application and annotators."""

    def __init__(self, folder, names=("anna", "ben", "chris"), database=""):
        self.store = open_store(folder, database)
        self.app = make_app(
            self.store,
            load_strings("en"),
            ("testserver", "127.0.0.1"),
            lab_routes(self.store, "http://x"),
        )
        self.tokens = add_annotators(self.store, list(names))
        self.undealt = deal(self.store)

    def person(self, name):
        return Person(self.app, self.tokens[name])

    def lab(self):
        client = TestClient(self.app, follow_redirects=True)
        page = client.get(f"/lab/enter/{lab_token(self.store)}")
        assert page.status_code == 200
        return client, page.text
