"""``emu-jax data caption``, ``pair`` and ``statistics``: a folder of images becomes pairs."""

import json

import encoders
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from emu_jax.assembly import captioning, pairing
from emu_jax.cli.main import main
from emu_jax.data.collection import Collection, first
from emu_jax.evaluation.preprocessing import CLIP_MEAN, CLIP_STD, cropped, normalized, squashed


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def images(tmp_path):
    """Eight images, two of which have the same pixels, with prompts, and a damaged one."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i in range(7):
        pixels = draws.integers(0, 256, (18, 20 + i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"fox {i}, sharp\nfox")
    Image.fromarray(pixels).save(folder / "deep" / "copy.bmp")
    for name in ("4.txt", "deep/copy.txt"):
        (folder / name).write_text("<b>cat</b>")
    (folder / "damaged.png").write_bytes(b"PNG")
    return folder


def test_captions(images, tmp_path, capsys, monkeypatch):
    reference = encoders.blip(tmp_path / "blip")
    out = tmp_path / "captions.jsonl"
    settings = ("--num_beams=2", "--min_length=7", "--max_length=12", "--batch_size=4")
    command = ["data", "caption", str(images), f"--model={tmp_path}/blip", *settings]
    assert main([*command, f"--out={out}"]) == 0
    assert f"8 captions in {out}, 1 images cannot be read" in capsys.readouterr().out
    found = {row["file_name"]: row for row in rows(out)}
    assert [*found] == [*(f"{i}.png" for i in range(7)), "damaged.png", "deep/copy.bmp"]
    damaged = found["damaged.png"]
    assert damaged["text"] == "" and damaged["reason"].startswith("not an image")

    with Image.open(images / "3.png") as image:
        x = normalized(squashed([np.asarray(image)], 16), CLIP_MEAN, CLIP_STD)
    ids = reference.generate(
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor([[2, 5, 6, 7, 3]]),
        **dict(num_beams=2, min_length=7, max_length=12, do_sample=False),
    )
    words = (tmp_path / "blip" / "vocab.txt").read_text().split()
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    want = [words[i] for i in ids[0, 4:] if words[i] not in special]
    assert found["3.png"]["text"] == " ".join(want).replace(" ##", "")
    assert found["6.png"]["text"] == found["deep/copy.bmp"]["text"]

    # An interrupted command goes on with what is missing, and equals the whole.
    whole = out.read_text()
    out.write_text(whole[: whole.index("2.png") + 3])
    read = []
    monkeypatch.setattr(
        captioning.Collection,
        "read",
        lambda self, name: read.append(name) or (images / name).read_bytes(),
    )
    assert main([*command, f"--out={out}"]) == 0
    assert out.read_text() == whole and read[0] == "2.png" and len(read) == 7
    # Shards divide the images.
    for i in (1, 2):
        assert main([*command, f"--out={tmp_path}/part.jsonl", f"--shard={i}/2"]) == 0
    parts = [rows(tmp_path / f"part.{i}-of-2.jsonl") for i in (1, 2)]
    assert len(parts[0]) == 5 and len(parts[1]) == 4
    assert {row["file_name"]: row for part in parts for row in part} == found
    capsys.readouterr()
    assert main([*command, f"--out={out}", "--prompt=a fox"]) == 2
    assert "has rows of another prompt (a picture of , now a fox)" in capsys.readouterr().err
    assert main([*command, f"--out={tmp_path}/captions.txt"]) == 2
    assert "name it FILE.jsonl" in capsys.readouterr().err


def test_pairs(images, tmp_path, capsys, monkeypatch):
    model = encoders.clip_whole(tmp_path / "clip")
    names = [f"{i}.png" for i in range(1, 7)] + ["deep/copy.bmp", "damaged.png"]
    same = ["<b>cat</b>", "fox 5, sharp", "fox 6, sharp", "<b>cat</b>"]  # equal texts pass
    texts = ["a red cat", "cat", "red", *same, "x"]
    table = [{"file_name": n, "text": t} for n, t in zip(names, texts, strict=True)]
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in table))
    out = tmp_path / "pairs"
    command = ["data", "pair", str(images), f"--captions={captions}", f"--out={out}"]
    command += [f"--clip={tmp_path}/clip", "--batch_size=4"]
    assert main(command) == 0
    said = capsys.readouterr().out
    kept, dropped = rows(out / "data" / "metadata.jsonl"), rows(out / "dropped.jsonl")
    assert f"{len(kept)} pairs kept, {len(dropped)} images dropped" in said

    # Against transformers' cosines.
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "clip")
    every = {row["file_name"]: row for row in kept + dropped}
    assert len(every) == 9
    prompts = {f"{i}.png": f"fox {i}, sharp" for i in range(7)}
    prompts |= dict.fromkeys(("4.png", "deep/copy.bmp"), "<b>cat</b>")
    passed = {}
    for name, text in zip(names[:-1], texts, strict=False):
        with Image.open(images / name) as image:
            x = normalized(cropped([np.asarray(image)], 12), CLIP_MEAN, CLIP_STD)
        both = [text, prompts[name]]
        tokens = tokenizer(both, padding="max_length", max_length=20, return_tensors="pt")
        with torch.no_grad():
            pixels = torch.tensor(x).permute(0, 3, 1, 2)
            a = model.get_image_features(pixels).pooler_output
            b = model.get_text_features(tokens["input_ids"]).pooler_output
        want = torch.nn.functional.cosine_similarity(a, b).numpy()
        row = every[name]
        found = [row["text_score"], row["prompt_score"]]
        np.testing.assert_allclose(found, want, atol=2e-5)
        assert (row["text"], row["prompt"]) == (text, prompts[name])
        passed[name] = text == prompts[name] or want[0] >= want[1]
    assert not all(passed.values())
    reasons = {row["file_name"]: row["reason"] for row in dropped}
    assert reasons.pop("0.png") == "it has no simple caption"
    assert reasons.pop("damaged.png") == "it has no complex prompt"
    assert reasons.pop("deep/copy.bmp") == "it has the same pixels as 6.png"
    higher = "the complex prompt has the higher score"
    assert reasons == {name: higher for name, ok in passed.items() if not ok}
    for row in kept:
        data = (out / "data" / row["file_name"]).read_bytes()
        assert data == (images / row["file_name"]).read_bytes()
    page = (out / "sheet.html").read_text()
    assert all(row["file_name"] in page for row in kept)
    assert "<b>" not in page and "&lt;b&gt;cat&lt;/b&gt;" in page

    # A person rejects a pair; scores are not computed again.
    read_each = pairing.read_each

    def watched(images, names, work, label):
        assert label != "scores" or not names
        return read_each(images, names, work, label)

    monkeypatch.setattr(pairing, "read_each", watched)
    check = out / "check.txt"
    check.write_text(check.read_text().replace("[ ] 5.png", "[x] 5.png"))
    assert main(command) == 2
    assert f"rejects 1 pairs; add --rejected={check}" in capsys.readouterr().err
    assert main([*command, f"--rejected={check}"]) == 0
    assert "1: it is rejected by hand" in capsys.readouterr().out
    again = rows(out / "data" / "metadata.jsonl")
    assert again == [row for row in kept if row["file_name"] != "5.png"]
    assert not (out / "data" / "5.png").exists() and "5.png (rejected)" in (
        (out / "sheet.html").read_text()
    )
    assert "[x] 5.png" in check.read_text()

    # The folder is one that a data set is built from, and has statistics.
    build = ["data", "build", "folder/pairs", f"--path={out}/data", f"--data_dir={tmp_path}/built"]
    assert main(build) == 0
    said = capsys.readouterr()
    assert f"{len(again)} images, {len(again)} captions" in said.out and "not used" not in said.err
    statistics = ["data", "statistics", f"{out}/data", f"--out={tmp_path}/statistics.html"]
    assert main(statistics) == 0
    assert f"{len(again)} pairs: {tmp_path}/statistics.html" in capsys.readouterr().out

    (out / "scores.jsonl").unlink()
    assert main([*command, f"--rejected={check}"]) == 2
    assert "this command did not write it; name another --out" in capsys.readouterr().err


def test_the_control_counts_wrong_captions(scenes, tmp_path, capsys):
    out = tmp_path / "pairs"
    command = ["data", "pair", "scenes/openmoji_tiny", f"--data_dir={scenes}", f"--out={out}"]
    command += ["--captions=simple", "--prompts=complex", "--select=kind == color|single"]
    command += ["--wrong=0.5"]
    assert main(command) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("control: "))
    counts = [int(word) for word in line.replace(",", "").split() if word.isdigit()]
    every = rows(out / "data" / "metadata.jsonl") + rows(out / "dropped.jsonl")
    groups = [[row for row in every if bool(row.get("wrong")) == wrong] for wrong in (True, False)]
    assert counts[1::2] == [len(group) for group in groups] == [9, 9]
    assert counts[::2] == [
        sum(row.get("reason", "").startswith("the complex") for row in group) for group in groups
    ]
    assert sum(counts[::2]) > 0
    source = {row["file_name"].removesuffix(".png"): row["text"] for row in every}
    images = Collection("scenes/openmoji_tiny", str(scenes))
    right = images.texts("simple", first)
    assert {name for name, text in source.items() if text != right[name]} == {
        row["file_name"].removesuffix(".png") for row in groups[0]
    }
    assert main([*command[:-1], "--wrong=1.5"]) == 2
    assert "1.5 is not a share" in capsys.readouterr().err
