"""Training the SUR-adapter: a generator draws an image's plain sentence as its elaborate prompt.

    L = L_simple + lambda_1 L_LLM + lambda_2 L_CP                                           (1)

L_simple is the generator's own loss under the adapted states of the simple prompt, whatever its
process and denoiser are; the other two are in :mod:`emu_jax.tasks.distillation`. (1) is equation 10
of the paper's losses (Zhong et al. 2023, arXiv:2305.05189). Texts are not dropped.

A row has two texts: the caption of its source is the simple prompt, and a further column of the
same record is the complex one. The adapter lies in the generator's conditioner
(:class:`emu_jax.nn.text_adapter.AdaptedConditioner`). That only its parameters train is the affair
of :class:`emu_jax.tasks.adapting.Adapted`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params, subtree
from emu_jax.nn.text_adapter import Adaptation, with_states
from emu_jax.tasks.base import Context, Loss, Rows, RowSpec, Vectors, cast
from emu_jax.tasks.distillation import Distillation, llm_loss, prompt_loss
from emu_jax.tasks.generator_task import GeneratorTask

PROJECTION = "projection"  # the frozen W_0 and b_0 of L_LLM
_DROPOUT = 2**30  # folded into the step's key


@dataclass(frozen=True, kw_only=True)
class TextAdaptation(GeneratorTask):
    """``base`` has an adapted conditioner. ``vectors`` are what is distilled, and ``layer`` is the
    place among the layers of their model. The metric ``cut`` is the share of rows that lose tokens
    to ``distillation.simple_tokens``.
    """

    distillation: Distillation
    vectors: Vectors | None = None
    layer: int = -1

    @property
    def streams(self) -> dict[str, RowSpec]:
        further = (self.distillation.column,) if self.distillation.prompt else ()
        return {
            name: replace(rows, captions=further, vectors=self.vectors)
            for name, rows in self.base.streams.items()
        }

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1), and its three terms."""
        rows = context.batch[self.base.stream]
        encoded, cut = self.simple(context.frozen, rows)
        adapted = self.adapt(context.params, encoded, jax.random.fold_in(context.key, _DROPOUT))
        conditions = self.base.condition(
            context.params, with_states(encoded, adapted), rows["sizes"], "joined"
        )
        total = simple = jnp.mean(self.base.losses(context, rows, conditions))
        distilled = self.distilled(context.frozen, rows, encoded, adapted)
        terms = {name: jnp.mean(values) for name, values in distilled.items()}
        for name, term in terms.items():
            total += getattr(self.distillation, name) * term
        return Loss(total, context.state, {"simple": simple, **terms, **cut})

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The generator's loss with adapted texts, and the distillation losses."""
        rows = context.batch[self.base.stream]
        valid = rows["valid"].astype(jnp.float32)
        encoded, _ = self.simple(context.frozen, rows)
        adapted = self.adapt(context.params, encoded)
        distilled = self.distilled(context.frozen, rows, encoded, adapted)
        sums = {name: (jnp.sum(x * valid), jnp.sum(valid)) for name, x in distilled.items()}
        return self.base.validate(context) | sums

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        return self.base.preview(context)

    def simple(
        self, frozen: Mapping[str, Params], rows: Rows
    ) -> tuple[dict[str, Encoded], dict[str, Float[Array, ""]]]:
        """The states of the simple prompts, and the metric ``cut`` where they may be cut."""
        encoded, length = self.base.encode(frozen, rows), self.distillation.simple_tokens
        if not length:
            return encoded, {}
        short = [name for name, encoder in self.base.encoders.items() if encoder.masks_padding]
        lost = [jnp.any(encoded[name].mask[:, length:], axis=1) for name in short]
        cut = {
            name: encoded[name]._replace(
                states=encoded[name].states[:, :length], mask=encoded[name].mask[:, :length]
            )
            for name in short
        }
        return encoded | cut, {"cut": jnp.mean(jnp.any(jnp.stack(lost), axis=0))}

    def adapt(
        self, params: Params, encoded: Mapping[str, Encoded], key: jax.Array | None = None
    ) -> dict[str, Adaptation]:
        """The adapters' outputs in the compute dtype; ``key`` is that of the dropouts."""
        inputs: Any = subtree(params, "conditioner"), dict(encoded)
        network, encoded = cast(inputs, self.base.compute_dtype)
        return self.base.conditioner(network, encoded, key, method="adapt")

    def distilled(
        self,
        frozen: Mapping[str, Params],
        rows: Rows,
        encoded: Mapping[str, Encoded],
        adapted: Mapping[str, Adaptation],
    ) -> dict[str, Float[Array, " b"]]:
        """``llm`` (L_LLM) and ``prompt`` (L_CP) of each row, those that have a weight; summed over
        the encoders. L_CP leaves out the tokens that are masked in either prompt.
        """
        chosen = self.distillation
        found: dict[str, list[Array]] = {}
        if chosen.llm:
            vector = rows["vectors"][:, self.layer]
            found["llm"] = [
                llm_loss(
                    own.query if chosen.target == "query" else own.encoder,
                    vector,
                    subtree(frozen[PROJECTION], name),
                    encoded[name].mask,
                    chosen.direction,
                    chosen.tokens,
                )
                for name, own in adapted.items()
            ]
        if chosen.prompt:
            complex_ = self.base.encode(frozen, rows["captions"][chosen.column])
            found["prompt"] = []
            for name, own in adapted.items():
                length = own.states.shape[1]
                mask = encoded[name].mask & complex_[name].mask[:, :length]
                wanted = complex_[name].states[:, :length]
                found["prompt"].append(prompt_loss(own.states, wanted, mask, chosen.tokens))
        return {name: sum(terms, jnp.zeros(())) for name, terms in found.items()}
