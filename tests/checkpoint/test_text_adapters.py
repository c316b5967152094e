"""Files of text adapters: the authors' module transcribed in torch, ours, the documented loader."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from emu_jax.assembly.models import with_text_adapter
from emu_jax.checkpoint.export import Model
from emu_jax.checkpoint.safetensors_io import read_metadata
from emu_jax.checkpoint.text_adapters import read_text_adapter, write_text_adapter
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.text_adapter import PREFIX, TextAdapter

PAGE = Path(__file__).parents[2] / "docs" / "adapter.md"
OPTIONS = dict(heads=2, eta=0.3, on_null=False)


class Transcription(nn.Module):
    """The published module: names, and the equations with attention within a prompt."""

    def __init__(self, width, hidden, eta=0.1):
        super().__init__()
        self.eta = eta
        self.encoder_layer = nn.TransformerEncoderLayer(width, 8, hidden, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(self.encoder_layer, 2)
        self.attention = nn.Module()
        for part in ("query", "key", "value"):
            self.attention.add_module(f"{part}_layer", nn.Linear(width, width))
        linear = nn.Linear(width, width), nn.Linear(width, width)
        self.attention.output_layer = nn.Sequential(linear[0], nn.ReLU(), linear[1])
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        e = self.transformer_encoder(x)
        scores = self.attention.query_layer(e) @ self.attention.key_layer(x).transpose(-2, -1)
        w = torch.softmax(scores / x.shape[-1] ** 0.5, dim=-1) @ x + x
        c = self.fc(self.attention.output_layer(w) + w)
        return self.eta * c + (1 - self.eta) * x


@pytest.fixture
def published():
    torch.manual_seed(0)
    return Transcription(16, 24).eval()


def test_the_authors_file_computes_what_their_module_does(published, tmp_path):
    torch.save({f"module.{k}": x for k, x in published.state_dict().items()}, tmp_path / "a.pt")
    found = read_text_adapter(str(tmp_path / "a.pt"))
    assert found.widths == {"": 16}
    assert found.options == dict(heads=8, eta=0.1, on_null=True, layers=2, hidden=24)
    x = torch.randn(3, 7, 16)
    options = dict(layers=2, heads=8, hidden=24, eta=0.1)
    adapter = Network(lambda rngs: TextAdapter(16, **options, rngs=rngs))
    with torch.no_grad():
        np.testing.assert_allclose(
            adapter(found.params[""], x.numpy()).states, published(x), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x | {"attention.other.weight": torch.ones(2)}, "has attention.other.weight"),
        (lambda x: {k: v for k, v in x.items() if k != "fc.weight"}, "lacks fc.weight"),
        (lambda x: x | {"fc.weight": torch.ones(3, 16)}, r"fc.weight of shape \[3, 16\]"),
        (lambda x: x | {"fc.weight": torch.full((16, 16), torch.nan)}, "fc.weight .* not finite"),
        (lambda x: {"conv.weight": torch.ones(2)}, "is not a text adapter"),
        (lambda x: x | {"fc.bias": torch.ones(15)}, "8, which does not divide"),
    ],
)
def test_other_tensors_are_refused_by_name(change, words, published, tmp_path):
    torch.save(change(published.state_dict()), tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        read_text_adapter(str(tmp_path / "a.pt"))


@pytest.fixture
def exported(tmp_path):
    """(the parameters of adapters of two encoders, their file)."""
    rng, params = np.random.default_rng(0), {}
    for name, width in (("clip", 8), ("t5", 6)):
        network = Network(lambda rngs, w=width: TextAdapter(w, heads=2, hidden=12, rngs=rngs))
        for path, x in network.shapes().items():
            params[f"{PREFIX}/{name}/{path}"] = rng.normal(size=x.shape).astype(np.float32)
    file = str(tmp_path / "folder" / "adapter.safetensors")
    write_text_adapter(file, {"denoiser/kernel": np.ones(1)} | params, OPTIONS, step="7")
    return params, file


def test_our_file_is_read_as_it_was_written(exported):
    params, file = exported
    found = read_text_adapter(file)
    own = {f"{PREFIX}/{n}/{path}": x for n, own in found.params.items() for path, x in own.items()}
    assert own.keys() == params.keys()
    for path, x in own.items():
        np.testing.assert_array_equal(x, params[path])
    assert (found.widths, found.options) == (
        {"clip": 8, "t5": 6},
        OPTIONS | dict(layers=2, hidden=12),
    )
    assert read_metadata(file) == {
        "kind": "sur_adapter",
        "encoders": '{"clip": 8, "t5": 6}',
        "heads": "2",
        "eta": "0.3",
        "on_null": "false",
        "step": "7",
    }


def test_the_documented_loader_computes_what_we_do(exported):
    params, file = exported
    (code,) = re.findall(r"```python\n(import json.*?)```", PAGE.read_text(), re.DOTALL)
    loaded: dict = {}
    exec(code, loaded)
    x = torch.randn(2, 5, 8)
    adapter = Network(lambda rngs: TextAdapter(8, heads=2, hidden=12, eta=0.3, rngs=rngs))
    head = f"{PREFIX}/clip/"
    own = {path.removeprefix(head): x for path, x in params.items() if path.startswith(head)}
    theirs = loaded["adapted"](x, file, "clip")
    np.testing.assert_allclose(adapter(own, x.numpy()).states, theirs, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_other_encoders_is_refused(exported, published, pictures, tmp_path):
    text = {"minilm": {"path": str(pictures / "text_encoder")}}
    model = Model({}, {"text": text}, {}, "x")
    with pytest.raises(UserError, match="adapts the text encoders 'clip', 't5'; the model has 'mi"):
        with_text_adapter(model, exported[1])
    torch.save(published.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match="of width 16, but 'minilm' of the model is 384 wide"):
        with_text_adapter(model, str(tmp_path / "a.pt"))
    adapted = Model({}, {"text": text, "adapter": {"layers": 2}}, {}, "x")
    with pytest.raises(UserError, match="has text adapters of its own"):
        with_text_adapter(adapted, exported[1])
