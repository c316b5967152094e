"""From a config to the task that learns a reward, and from a trained reward to a teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.config import read
from emu_jax.assembly.encoders import frozen_encoders, make_encoders
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.models import locate
from emu_jax.assembly.networks import compute_dtype, frozen_arrays, module, untrained
from emu_jax.assembly.published_rewards import PUBLISHED, Opened
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import described_by, require_fit
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.errors import UserError
from emu_jax.nn.blip import ImageReward
from emu_jax.nn.functional import Network
from emu_jax.nn.reward import RewardTower
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.tasks.adversary import Adversary
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.preferences import Preferences
from emu_jax.tasks.rewards import ALPHA, BlipReward, Hinge, TowerReward
from emu_jax.tasks.teachers import Teacher
from emu_jax.text.bert_tokens import BertTokens
from emu_jax.text.encoder import TextEncoder


def make_preferences(config: ConfigDict, on: Placement) -> Preferences:
    encoders, section = make_encoders(config.text), config.preferences
    if len(encoders) != 1:
        raise UserError(
            f"config.text names {', '.join(encoders)}: a reward needs exactly one text encoder."
        )
    if section.round_trip and "codec" not in config:
        raise UserError(
            f"preferences.round_trip is {section.round_trip}, which needs a codec: set codec.path "
            "to a trained autoencoder, or preferences.round_trip to 0."
        )
    codec, frozen = make_codec(config.codec) if "codec" in config else (None, {})
    (encoder,) = encoders.values()
    outputs = len(section.dimensions) if section.separate else 1
    network = reward_network(config, encoder, outputs, on)
    kind = TowerReward if config.reward.kind == "tower" else BlipReward
    return Preferences(
        reward=kind(network, config.data.image_size, compute_dtype(config)),
        network=network,
        encoders=encoders,
        dimensions=tuple(section.dimensions),
        dimension=section.dimension,
        separate=section.separate,
        indifference=section.indifference,
        votes=section.votes,
        codec=codec,
        round_trip=section.round_trip,
        groups=make_groups(config),
        frozen={**frozen_encoders(config.text, encoders), **frozen},
    )


def reward_network(
    config: ConfigDict, encoder: TextEncoder, outputs: int, on: Placement
) -> Network:
    arguments = config.reward.to_dict()
    if arguments.pop("kind") == "tower":
        arguments |= dict(text_width=encoder.width, outputs=outputs, constrain=on.constrain)
        return Network(partial(module, RewardTower, arguments))
    if not isinstance(encoder, BertTokens) or outputs > 1:
        raise UserError(
            "reward.kind=blip has its own text encoder and one output: use text.NAME.kind="
            "bert_tokens and preferences.separate=False."
        )
    if encoder.length > arguments["positions"]:
        raise UserError(
            f"config.text.{encoder.name}.length is {encoder.length}, more than reward.positions, "
            f"{arguments['positions']}."
        )
    arguments |= dict(image_size=config.data.image_size, vocabulary=encoder.vocabulary)
    return Network(partial(module, ImageReward, arguments))


def trained_reward(path: str) -> tuple[Preferences, Frozen, ConfigDict]:
    """The task of a reward's run or exported model, its weights with what standardizes it, and its
    config. If the path is a config file there are shapes only, as for a codec.

    Raises:
      UserError: there is no such model, it is no reward, or its weights do not fit its config.
    """
    model = None if is_config_file(path) else load_model(locate(path), dtype=np.float32)
    config = ConfigDict(model.config) if model else read(path)
    if config.get("task") != "reward":
        raise UserError(
            f"{path} is not a reward: its task is {config.get('task')!r}; use a model of "
            "configs/reward.py."
        )
    config = ConfigDict(config.to_dict())
    config.preferences.round_trip = 0.0  # no image passes the codec: none is needed
    if "codec" in config:
        del config.codec
    with described_by(path):
        task = make_preferences(config, ONE_DEVICE)
        params, state = jax.eval_shape(task.init, jax.random.key(0))
    shapes = {**params, **state}
    if model is None:
        return task, Frozen(path, "none", shapes, untrained("path", path)), config
    require_fit(model.params, shapes, path)
    weights = frozen_arrays(path, {name: model.params[name] for name in shapes})
    return task, replace(weights, fingerprint=model.fingerprint), config


def make_reward(
    on: Placement,
    *,
    path: str,
    model: str,
    dimension: str,
    alpha: float | None,
    alpha_scale: float = 1.0,
) -> tuple[Hinge, Frozen]:
    """A teacher. Its text encoder is not among the frozen weights: see :func:`read_texts`."""
    del on
    opened = PUBLISHED[model](path) if model else _open_trained(path)
    output = _output(opened.outputs, dimension, path)
    if alpha is None and np.isnan(opened.alpha[output]):
        raise UserError(
            f"The reward {path} has no alpha: it is measured when training ends. Train it to its "
            "end, or set alpha of the teacher."
        )
    hinge = Hinge(opened.reward, opened.encoder, output, alpha, alpha_scale)
    return hinge, opened.weights


def make_adversary(
    on: Placement, *, path: str, dimension: str, r1: float
) -> tuple[Adversary, Frozen]:
    """A teacher that learns, and the weights that it starts from."""
    del on
    task, weights, _ = trained_reward(path)
    (encoder,) = task.encoders.values()
    output = _output(task.outputs, dimension, path)
    return Adversary(task.reward, task.network, encoder, output, r1), weights


def _output(outputs: Sequence[str], dimension: str, path: str) -> int:
    """The number of a reward's output of a dimension."""
    if dimension and dimension not in outputs:
        raise UserError(
            f"{path} has no reward of the dimension {dimension!r}; it has "
            f"{', '.join(filter(None, outputs)) or 'one of all preferences'}."
        )
    if not dimension and len(outputs) > 1:
        raise UserError(
            f"{path} has rewards of several dimensions: set dimension to one of "
            f"{', '.join(outputs)}."
        )
    return outputs.index(dimension) if dimension else 0


def _open_trained(path: str) -> Opened:
    task, weights, _ = trained_reward(path)
    (encoder,) = task.encoders.values()
    alpha = np.zeros(len(task.outputs))  # of a config file, to plan with
    if not is_config_file(path):
        alpha = np.asarray(dict(weights.tensors())[ALPHA])
    return Opened(task.reward, encoder, weights, task.outputs, alpha)


def read_texts(
    teachers: Mapping[str, Teacher], encoders: Mapping[str, TextEncoder]
) -> tuple[dict[str, Teacher], dict[str, TextEncoder], dict[str, Frozen]]:
    """The teachers, rewards among them with the name of the encoder that reads their text; these
    encoders by name; and the weights of those that are not among ``encoders``, the generator's.
    Equal encoders have one name.
    """
    known, found, read = dict(encoders), dict(teachers), {}
    for name, teacher in teachers.items():
        if isinstance(teacher, Hinge | Adversary) and teacher.encoder:
            own = teacher.encoder
            text = next((key for key, other in known.items() if _same(own, other)), "")
            if not text:
                text = f"{name}_text"
                known[text] = own
            found[name], read[text] = replace(teacher, text=text), known[text]
    weights = {
        text: Frozen(str(x.folder), x.fingerprint, x.shapes(), x.tensors, x.dtype)
        for text, x in read.items()
        if text not in encoders
    }
    return found, read, weights


def _same(one: TextEncoder, other: TextEncoder) -> bool:
    """Whether two encoders have the same output for every text."""
    about = (
        (type(x), x.settings(), x.dtype, x.fingerprint, x.tokenizer_fingerprint)
        for x in (one, other)
    )
    return len({repr(x) for x in about}) == 1
