"""Models of prompts' vectors beside language models: a table of vectors, a text encoder."""

import numpy as np
import pytest
import torch

from emu_jax.checkpoint.safetensors_io import place
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import shard_params
from emu_jax.text.encoder import make_encoder
from emu_jax.text.vectors import PooledEncoder, make_vector_model


def computed(model, texts):
    params = place(model.tensors(), shard_params(model.shapes(), make_mesh()), model.dtype)
    return np.asarray(model.vectors(params, **model.tokenize(texts)))


def test_a_table_has_the_vectors_of_its_prompts(tmp_path):
    file = tmp_path / "39.pt"
    vectors = {f"a fox {i}": torch.randn(5, dtype=torch.float16) for i in range(3)}
    torch.save(vectors | {" two  cats\n": torch.ones(5)}, file)
    model = make_vector_model(str(file))
    assert (model.width, model.layers, model.settings) == (5, (39,), {"layers": "39"})
    found = computed(model, ["two cats", "", "a fox 1"])
    np.testing.assert_array_equal(found[:2, 0], [np.ones(5), np.zeros(5)])
    np.testing.assert_array_equal(found[2, 0], vectors["a fox 1"].float())
    with pytest.raises(UserError, match="no vector of the prompt 'a dog'"):
        model.tokenize(["a dog"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": torch.ones(5), "b": torch.ones(4)}, r"shape \[4\] for 'b'"),
        ({"a": torch.ones(1, 5)}, r"shape \[1, 5\] for 'a'"),
        ({"a": 1}, "has no vectors"),
        ({"a": pytest.raises}, "more than tensors"),
    ],
)
def test_other_files_are_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "0.pt")
    with pytest.raises(UserError, match=words):
        _ = make_vector_model(str(tmp_path / "0.pt")).width


def test_a_text_encoders_pooled_vector(pictures):
    encoder = make_encoder("minilm", 16, path=pictures / "text_encoder")
    model, texts = PooledEncoder(encoder), ["a red disc", "", "purple ball"]
    params = place(encoder.tensors(), shard_params(encoder.shapes(), make_mesh()), "float32")
    tokens = encoder.tokenize(texts)
    want = np.array(encoder.apply(params, tokens["ids"], tokens["mask"]).pooled)
    want[1] = 0  # of the empty text
    np.testing.assert_array_equal(computed(model, texts)[:, 0], want)
    assert model.width == 384 and want[0].any()
    with pytest.raises(UserError, match="no blocks: name no layers"):
        make_vector_model("builtin:minilm", (3,))
