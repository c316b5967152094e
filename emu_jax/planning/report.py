"""Plans as a printed table, as JSON and as an HTML page."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from etils import epath

from emu_jax.evaluation.curves import interval_plot
from emu_jax.evaluation.report import Charts, Section, Table, Text, write_report
from emu_jax.planning.chips import GIB, Chip
from emu_jax.planning.cost import totals
from emu_jax.planning.gpus import Gpu
from emu_jax.planning.plan import SAMPLER, Plan
from emu_jax.planning.traffic import NVLINK

COLUMNS = (
    "topology",
    "mesh",
    "GiB a chip",
    "of",
    "arguments",
    "outputs",
    "aliased",
    "temporaries",
    "TFLOP a chip",
    "modelled ms",
    "MFU",
    "images/s a chip",
    "kernels",
    "modelled by",
    "compiled in s",
)
_KEYS = {"part": "Phase of the step", "sort": "Kind of operation", "module": "Module"}
_MODULES = 16
_NOTE = """Memory is the compiler's own layout, in GiB per chip. For TPUs the modeled step is a sum
of the compiler's estimates and contains neither waiting nor collectives. For GPUs it is a roofline
of the kernels, with measured factors where there are some, and collectives that overlap with
nothing; memory is without the CUDA context (half a GiB) and without workspaces of convolutions. Use
both to compare two versions of a step. FLOPs are the model's, forward and backward; nothing is
counted twice."""


def row(plan: Plan) -> list[object]:
    """The table row of one plan; entries that a step that does not fit cannot have are None."""
    capacity = plan.topology.chip.memory / GIB
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    head: list[object] = [_name(plan), mesh]
    flops, compiled = plan.flops / plan.chips / 1e12, plan.compile_seconds
    memory = plan.memory
    if memory is None:
        return [*head, "does not fit", capacity, *[None] * 4, flops, *[None] * 5, compiled]
    sizes = (memory.arguments, memory.outputs, memory.aliased, memory.temporaries)
    return [
        *head,
        memory.peak / GIB,
        capacity,
        *(size / GIB for size in sizes),
        flops,
        plan.seconds * 1e3,
        f"{plan.mfu:.1%}",
        plan.images_per_second,
        plan.kernels,
        _modeled_by(plan.topology.chip),
        compiled,
    ]


def record(plan: Plan, profile: bool) -> dict[str, Any]:
    """A plan as JSON, in bytes, FLOPs and seconds."""
    found: dict[str, Any] = {
        "measure": plan.what,
        "topology": plan.topology.name,
        "slices": plan.topology.slices,
        "chips": plan.chips,
        "mesh": dict(plan.mesh),
        "batch_size": plan.batch_size,
        "capacity": plan.topology.chip.memory,
        "model_flops": plan.flops,
        "compile_seconds": plan.compile_seconds,
        "fits": plan.memory is not None,
        "advice": plan.advice,
    }
    if plan.memory is None:
        return found
    found |= {
        "memory": {**asdict(plan.memory), "peak": plan.memory.peak},
        "modelled_seconds": plan.seconds,
        "modelled_by": _modeled_by(plan.topology.chip),
        "kernels": plan.kernels,
        "mfu": plan.mfu,
        "images_per_second_a_chip": plan.images_per_second,
        "open_loops": plan.open_loops,
        "collectives": [asdict(one) for one in plan.traffic],
    }
    if profile:
        sums = {key: totals(plan.terms, key) for key in _KEYS}
        found["profile"] = {**sums, "part of sort": _crossed(plan)}
    return found


def print_plans(plans: Sequence[Plan], profile: bool) -> None:
    """Prints the table, the traffic and the advice; with ``profile`` also where the time goes."""
    print(_aligned([COLUMNS, *map(row, plans)]))
    for plan in plans:
        if plan.memory is None:
            print(f"\n{plan.advice}")
            continue
        sent = [f"{t.count} {t.kind} ({t.link}, {t.bytes / 2**20:,.1f} MiB)" for t in plan.traffic]
        if plan.open_loops:
            print(
                f"\n{plan.open_loops} loops on {_name(plan)} have an unknown trip count; each "
                "counts once"
            )
        print(f"\n{_name(plan)} sends per {plan.what} and chip: {', '.join(sent) or 'nothing'}")
        for key, title in _KEYS.items() if profile else ():
            found = list(totals(plan.terms, key).items())[:_MODULES]
            rows = [(name, s * 1e3, f"{s / plan.seconds:.1%}") for name, s in found]
            print(f"\n{_aligned([(title, 'ms', ''), *rows])}")
    exponent = nvlink_exponent(plans)
    if exponent is not None:
        print(f"\nBytes over NVLink per GPU grow as the number of GPUs to the power {exponent:.2f}")


def nvlink_exponent(plans: Sequence[Plan]) -> float | None:
    """The exponent e of bytes ~ GPUs^e over NVLink, between the smallest and the largest number of
    GPUs; None without two plans of the same kind that send something.
    """
    sent = sorted(
        (plan.chips, sum(t.bytes for t in plan.traffic if t.link == NVLINK))
        for plan in plans
        if plan.what == plans[0].what
    )
    sent = [(chips, size) for chips, size in sent if size]
    if not sent or sent[0][0] == sent[-1][0]:
        return None
    (few, first), (many, last) = sent[0], sent[-1]
    return math.log(last / first) / math.log(many / few)


def save(folder: epath.PathLike, title: str, plans: Sequence[Plan], profile: bool) -> epath.Path:
    """Writes ``plan.json`` and ``index.html`` to the folder; returns the path of the page."""
    folder = epath.Path(folder)
    sections: list[Section] = [Table("Plan", COLUMNS, [row(plan) for plan in plans], note=_NOTE)]
    for plan in plans:
        if plan.memory is None:
            sections.append(Text(f"{_name(plan)} does not fit", plan.advice))
            continue
        sent = [[t.kind, t.link, t.count, t.bytes / 2**20] for t in plan.traffic]
        columns = ["collective", "link", "count per step", "MiB of results per chip"]
        sections.append(Table(f"Traffic on {_name(plan)}", columns, sent))
        if profile:
            sections += _profile(plan)
    index = write_report(folder / "index.html", title, sections)
    (folder / "plan.json").write_text(json.dumps([record(p, profile) for p in plans], indent=1))
    return index


def _profile(plan: Plan) -> list[Section]:
    plots = {}
    for key, title in _KEYS.items():
        found = list(totals(plan.terms, key).items())[:_MODULES]
        # An interval from 0 to the value is a bar.
        bars = {name: (s * 1e3, 0.0, s * 1e3) for name, s in found}
        plots[f"{title}, modeled ms"] = interval_plot(bars, title)
    crossed = _crossed(plan)
    parts = list(totals(plan.terms, "part"))
    rows = [
        [sort, *(by_part.get(part, 0.0) * 1e3 for part in parts), sum(by_part.values()) * 1e3]
        for sort, by_part in crossed.items()
    ]
    return [
        Charts(f"Where the time of the step goes on {_name(plan)}", [], plots),
        Table("Modeled ms by kind of operation and phase", ["", *parts, "all"], rows),
    ]


def _modeled_by(chip: Chip) -> str:
    if not isinstance(chip, Gpu):
        return "compiler's cycles"
    source = chip.factors.source
    return f"roofline x factors of {source}" if source else "roofline, not calibrated"


def _crossed(plan: Plan) -> dict[str, dict[str, float]]:
    """Kind of operation -> phase -> seconds."""
    return {
        sort: totals([term for term in plan.terms if term.sort == sort], "part")
        for sort in totals(plan.terms, "sort")
    }


def _name(plan: Plan) -> str:
    slices = plan.topology.slices
    sampler = f", {SAMPLER}" if plan.what == SAMPLER else ""
    return plan.topology.name + (f", {slices} slices" if slices > 1 else "") + sampler


def _aligned(rows: Sequence[Sequence[object]]) -> str:
    """Rows as text in columns: words are aligned to the left, numbers to the right."""
    texts = [[_cell(value) for value in one] for one in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for values, cells in zip(rows, texts, strict=True):
        padded = [
            cell.rjust(width) if isinstance(value, float | int) else cell.ljust(width)
            for value, cell, width in zip(values, cells, widths, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
