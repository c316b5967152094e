"""Real compilations for chips that are not here, of tasks so small that it takes seconds."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import abstract_batch, constrain
from emu_jax.planning.chips import GIB, open_topology
from emu_jax.planning.cost import totals
from emu_jax.planning.flops import step_flops
from emu_jax.planning.plan import advise, plan_step
from emu_jax.tasks.base import Group, Loss, RowSpec, Task
from emu_jax.training.state import abstract_state

pytest.importorskip("libtpu")  # the compiler: Linux on x86 only

LAYERS, WIDTH, ROWS = 6, 512, 4096


class Stack(Task):
    """Layers of one product each, scanned or one after the other."""

    streams = {"train": RowSpec()}  # noqa: RUF012

    def __init__(self, scanned=True, width=WIDTH, hold=lambda x: x):
        group = Group("", optax.sgd(0.1), lambda n: 0.1)
        super().__init__(groups={"all": group}, frozen={})
        vars(self).update(scanned=scanned, width=width, hold=hold)

    def init(self, key):
        return {"blocks_scan": jnp.zeros((LAYERS, self.width, self.width))}, {}

    def loss(self, group, context):
        params = context.params

        def layer(x, w):
            return self.hold(jnp.tanh(x @ w.astype(x.dtype))), None

        x = context.batch["train"]["x"].astype(jnp.bfloat16)
        if self.scanned:
            x, _ = jax.lax.scan(layer, x, params["blocks_scan"])
        else:
            for i in range(LAYERS):
                x, _ = layer(x, params["blocks_scan"][i])
        return Loss(jnp.mean(x.astype(jnp.float32) ** 2), context.state)


def plan(**stack):
    topology = open_topology("v5e:2x2")
    mesh = make_mesh(fsdp=4, devices=topology.devices)
    task = Stack(hold=constrain(mesh), **stack)
    state = abstract_state(task, mesh)
    rows = {"x": jax.ShapeDtypeStruct((ROWS, task.width), jnp.float32)}
    batch = {"train": abstract_batch(rows, mesh)}
    flops = step_flops(task, state, {}, batch)["all"]
    return plan_step(task, topology, mesh, state, {}, batch, flops)


@pytest.fixture(scope="module")
def scanned():
    return plan()


def test_memory_is_counted_a_chip(scanned):
    weights, batch = LAYERS * WIDTH * WIDTH * 4 // 4, ROWS * WIDTH * 4 // 4
    memory = scanned.memory
    assert weights + batch <= memory.arguments <= weights + batch + 10_000
    assert weights <= memory.aliased <= weights + 10_000  # the state is donated
    assert memory.aliased <= memory.outputs <= memory.aliased + 10_000
    assert memory.peak < scanned.topology.chip.memory


def test_flops_are_the_products_forward_and_backward(scanned):
    product = 2 * ROWS * WIDTH * WIDTH
    assert scanned.flops == LAYERS * 3 * product
    assert scanned.chips == 4
    assert scanned.mfu == pytest.approx(scanned.flops / 4 / scanned.seconds / 197e12)
    assert 0.05 < scanned.mfu < 1
    assert scanned.images_per_second == pytest.approx(ROWS / 4 / scanned.seconds)


def test_weights_are_gathered_as_often_as_the_loop_turns(scanned):
    sent = {t.kind: t for t in scanned.traffic}
    assert {t.link for t in scanned.traffic} == {"ICI"}
    # A layer's weights once forward and perhaps once backward, in bf16 or fp32.
    assert LAYERS <= sent["all-gather"].count <= 2 * LAYERS
    assert LAYERS * WIDTH**2 * 2 <= sent["all-gather"].bytes <= 2 * LAYERS * WIDTH**2 * 4
    reduced = sum(t.count for t in scanned.traffic if "reduce" in t.kind)
    assert reduced >= LAYERS  # a layer's gradient, and the loss
    assert "all-to-all" not in sent


def test_a_loop_costs_what_its_turns_cost_one_after_the_other(scanned):
    unrolled = plan(scanned=False)
    assert unrolled.flops == pytest.approx(scanned.flops, rel=0.06)  # no gradient to the batch
    one, other = (totals(p.terms, "sort")["matrix product"] for p in (scanned, unrolled))
    assert 0.7 < one / other < 1.5


def test_twice_as_many_products_backward(scanned):
    products = [term for term in scanned.terms if term.sort == "matrix product"]
    parts = totals(products, "part")
    assert parts.keys() == {"forward", "backward"}
    assert 1.5 < parts["backward"] / parts["forward"] < 3
    assert totals(scanned.terms, "part")["optimiser"] > 0


def test_a_step_that_does_not_fit_is_told_what_to_change():
    wide = plan(width=2**15)  # 24 GiB of weights, 6 a chip, and their gradients
    assert wide.memory is None
    assert re.fullmatch(
        r"The step needs \d+\.\d GiB per chip, but v5e:2x2 has 15\.75 GiB per chip; .*: .*\.",
        wide.advice,
    )


@pytest.mark.parametrize(
    ("held", "fsdp", "rows", "slices", "words"),
    [
        (14, 4, 64, 1, "alone take 14.0 GiB: raise mesh.fsdp (now 4)"),
        (14, 16, 64, 1, "alone take 14.0 GiB: use a larger topology"),
        (5, 16, 64, 1, "each chip processes 4 images at once: lower train.batch_size, raise"),
        (5, 16, 16, 1, "already processes a single image: rematerialize"),
    ],
)
def test_advice_names_what_is_too_large(held, fsdp, rows, slices, words):
    topology = open_topology("v5e:4x4")
    for error in (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.51G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (40.51G) exceeds available HBM (15.75G).",
    ):
        advice = advise(error, topology, held * GIB, fsdp, rows)
        start = "The step needs 40.5 GiB per chip, but v5e:4x4 has 15.75 GiB per chip; "
        assert advice.startswith(start)
        assert words in advice and "\n" not in advice
