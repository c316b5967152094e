"""The page to draw with: what it runs, keeps and refuses, and all of it in a browser."""

import base64
import io
import json
import shlex
import zlib

import numpy as np
import pytest
import runs
from browsing import CHROMIUM, chromium, open_page, served
from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from emu_jax.app import guard
from emu_jax.app.asking import BOXED, PAINTED, Asked, joined
from emu_jax.app.history import INDEX_FILE, History
from emu_jax.assembly.drawing import save_image
from emu_jax.cli.main import command, main
from emu_jax.errors import UserError

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


def url(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def test_an_action_is_a_command(tmp_path):
    def line(action, prompt="a fox", **fields):
        return joined(Asked(action, prompt, "A", **fields).commands("p.png", str(mask)))

    mask = tmp_path / "mask.png"
    painted = Image.new("L", (20, 10))
    ImageDraw.Draw(painted).rectangle((3, 2, 8, 6), fill=255)
    painted.save(mask)
    common = "--checkpoint=A --seed=0 --batch_size=4"
    assert line("draw") == f"emu-jax sample --per_prompt=4 {common} 'a fox'"
    assert line("draw", "--help", steps=3, guidance_scale=2.5, negative="x y") == (
        f"emu-jax sample --per_prompt=4 {common} --steps=3 --guidance_scale=2.5 "
        "'--negative=x y' -- --help"
    )
    adapted = line("stickers", adapter="L", adapter_scale=0.5, text_adapter="T", eta=0.0)
    more = "--adapter=L --adapter_scale=0.5 --text_adapter=T --eta=0"
    assert adapted == f"emu-jax sticker --count=4 {common} {more} 'a fox'"
    controlled = line("draw", control="C", control_strength=1)
    assert controlled.endswith("--control=C@1.0 --control_image=p.png 'a fox'")
    restyled = f"emu-jax restyle --strength=0.6 --per_prompt=4 {common} p.png 'a fox'"
    assert line("restyle") == restyled
    assert " --control=C@0.5 p.png" in line("restyle", control="C", control_strength=0.5)
    kept = restyled.replace("restyle --", "backdrop {} --")
    assert line("backdrop", subject=PAINTED) == kept.format(f"--mask={mask}")
    assert line("backdrop", subject=BOXED) == kept.format("--box=3,2,9,7")
    first, second = line("side by side", other="B").splitlines()
    assert second == first.replace("--checkpoint=A", "--checkpoint=B") != first
    for action, prompt in (("draw", " "), ("draw", "a" * 2001), ("dance", "a fox")):
        with pytest.raises(UserError):
            line(action, prompt)
    with pytest.raises(UserError, match="for draw and restyle, not for stickers"):
        line("stickers", control="C")


def test_the_history_is_what_is_on_disk(tmp_path):
    history = History(str(tmp_path))
    folder = history.new_folder()
    photo = Image.new("RGBA", (6, 4), (255, 0, 0, 128))
    mask = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    mask.putpixel((2, 1), (255, 64, 129, 255))
    files = list(history.keep(folder, url(photo), url(mask)))
    assert Image.open(files[0]).getpixel((0, 0)) == (255, 0, 0, 128)
    assert np.argwhere(np.asarray(Image.open(files[1]))).tolist() == [[1, 2]]
    for seed in (10, 9):
        save_image(photo, folder / f"fox_{seed}.png", seed=seed, prompt="<b>fox", model="A")
    assert [one.seed for one in history.add(folder, "emu-jax sample fox")] == [9, 10]
    outside = json.dumps(
        dict(file="../secret.png", seed=1, prompt="", model="", command="", time="")
    )
    (tmp_path.parent / "secret.png").write_bytes(b"")
    with (tmp_path / INDEX_FILE).open("a") as index:
        index.write(f"{outside}\nnonsense\n[]\n")
    again = History(str(tmp_path))
    assert [one.file for one in again.records()] == ["0001/fox_10.png", "0001/fox_9.png"]
    assert again.records()[0].prompt == "<b>fox" and again.new_folder().name == "0002"
    (folder / "fox_10.png").unlink()
    assert len(again.records()) == 1
    bomb = bytearray(base64.b64decode(url(photo).partition(",")[2]))
    bomb[16:24] = (10**5).to_bytes(4, "big") * 2  # width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    for wrong, why in (
        (f"data:image/png;base64,{base64.b64encode(bytes(bomb)).decode()}", "too large"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:image/png;base64,?", "did not arrive whole"),
        ("", "not an image"),
    ):
        with pytest.raises(UserError, match=why):
            list(history.keep(folder, wrong, ""))


def test_the_guard_lets_nothing_else_through(monkeypatch):
    async def reached(request):
        return PlainTextResponse(await request.body())

    routes = [Route("/{path:path}", reached, methods=["GET", "POST"])]
    client = TestClient(guard.Guard(Starlette(routes=routes)))
    monkeypatch.setattr(guard, "MOST_BYTES", 1000)
    join = "/gradio_api/queue/join"
    event = {"data": ["draw", 1, None, [True, 0.5]], "event_data": {"index": 1}}
    found = client.post(join, json=event)
    assert found.status_code == 200 and found.json() == event
    assert client.get("/assets/index.js").status_code == 200
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/docs", "/gradio_api/info"):
        assert client.get(path).status_code == client.post(path).status_code == 404
    for data in ([FILE], [[FILE]], FILE):
        assert client.post(join, json={"data": data}).status_code == 400
    assert client.post(join, content=b"[" * 900).status_code == 400
    assert client.post(join, json={"data": ["x" * 1000]}).status_code == 413
    for headers in ({"origin": "http://elsewhere.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(join, json=event, headers=headers).status_code == 403
    assert client.post(join, json=event, headers={"origin": "http://testserver"}).is_success


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_a_person_draws_keeps_a_subject_and_restyles(generator_run, control_run, tmp_path):
    """With previews; the command that is shown repeats the images bit for bit."""
    pytest.importorskip("gradio")
    from emu_jax.app.page import Choices
    from emu_jax.app.serving import make_app
    from emu_jax.app.studio import Studio

    photo = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(photo).ellipse((10, 5, 30, 25), fill="red")
    photo.save(tmp_path / "disc.png")
    out = tmp_path / "history"
    studio = Studio({name: command(name) for name in ("sample", "backdrop", "restyle")})
    lora = tmp_path / "lora"
    runs.write_lora(generator_run, lora)
    choices = Choices([str(generator_run)], adapters=[str(lora)], controls=[str(control_run)])
    app = make_app(studio, History(str(out)), choices)
    prompt = "a <b>red</b> disc <img src=x onerror=\"document.title='broken'\">"
    problems, asked = [], []
    with served(app) as address, chromium() as browser:
        page = open_page(browser.new_context(viewport={"width": 1400, "height": 900}), problems)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_text("Sampling and adapters").click()
        page.get_by_label("Steps").fill("6")
        page.get_by_label("number input for Images").fill("2")
        # Every sentence that the status has had, however short it was there.
        page.evaluate(
            "() => { window.said = []; setInterval(() => { const now = "
            "document.querySelector('#said textarea').value; "
            "if (now !== window.said.at(-1)) window.said.push(now); }, 2); }"
        )

        def drawn(images):
            page.get_by_role("button", name="Draw", exact=True).click()
            page.wait_for_function(
                "images => { const previews = window.said.lastIndexOf('After 5 of 6 steps.'); "
                "return previews >= 0 && window.said.at(-1).startsWith(`${images} images`) "
                "&& document.querySelectorAll('#images .thumbnail-item img').length === images }",
                arg=images,
            )
            line = page.locator("#command textarea").input_value()
            page.evaluate("() => window.said.splice(0)")
            return shlex.split(line)

        line = drawn(2)
        assert page.title() != "broken" and page.locator("img[src=x]").count() == 0
        page.locator("#images .thumbnail-item").nth(1).click()
        page.wait_for_function("() => window.said.at(-1)?.startsWith('Seed 1 ')")
        assert page.get_by_label("Seed of the first").input_value() == "1"

        page.get_by_label("backdrop").check()
        page.get_by_label("Photograph", exact=True).set_input_files(tmp_path / "disc.png")
        page.get_by_label(PAINTED).check()
        box = page.locator(".photo canvas").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.3, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, middle, steps=4)
        page.mouse.up()
        backdrop = drawn(2)
        page.get_by_label("restyle").check()
        page.get_by_label("Steps").fill("10")  # of which a strength of 0.6 takes six
        for label, choice, strength in (("LoRA", lora, "0.5"), ("ControlNet", control_run, "0.75")):
            page.get_by_label(label, exact=False).first.click()
            page.get_by_role("option", name=str(choice)).click()
            row = page.locator(".row", has=page.get_by_label(label, exact=False)).last
            row.get_by_label("number input for its strength").fill(strength)
        restyle = drawn(2)
        page.reload()
        page.wait_for_function(
            "() => document.querySelectorAll('#history .thumbnail-item img').length === 6"
        )
    assert problems == [] and all(one.startswith((address, "data:")) for one in asked)
    # Sampling in one piece, from the shell.
    assert line[:2] == ["emu-jax", "sample"] and line[-1] == prompt
    assert main(["sample", f"--out={tmp_path / 'again'}", *line[2:]]) == 0
    records = History(str(out)).records()
    for record in records[4:]:
        name = record.file.partition("/")[2]
        first, again = (Image.open(folder / name) for folder in (out / "0001", tmp_path / "again"))
        np.testing.assert_array_equal(first, again)
        assert shlex.split(record.command) == line
    assert [one.seed for one in records] == [2, 1, 2, 1, 1, 0]
    adapted = [f"--adapter={lora}", "--adapter_scale=0.5", f"--control={control_run}@0.75"]
    assert restyle[1] == "restyle" and all(option in restyle for option in adapted)
    assert main(["restyle", f"--out={tmp_path / 'restyled'}", *restyle[2:]]) == 0
    for name in (record.file.partition("/")[2] for record in records[:2]):
        first, again = (Image.open(one / name) for one in (out / "0003", tmp_path / "restyled"))
        np.testing.assert_array_equal(first, again)
    assert backdrop[1] == "backdrop" and f"--mask={out / '0002' / 'mask.png'}" in backdrop
    painted = np.asarray(Image.open(out / "0002" / "mask.png")) > 0
    assert painted[15, 13:27].all() and not painted[:3].any()
    result, source = (
        np.asarray(Image.open(one)) for one in (out / records[2].file, tmp_path / "disc.png")
    )
    inside = np.zeros_like(painted)
    inside[15, 15:25] = True
    np.testing.assert_array_equal(result[inside], source[inside])
    assert (result[~painted] != source[~painted]).any()
