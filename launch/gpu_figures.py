"""Parts of ``launch/gpu_figures.sh``: the step of diffusers' SDXL in PyTorch, and the table.

python launch/gpu_figures.py torch --size=sdxl --device=cuda --images=8 --out=FILE.json
python launch/gpu_figures.py table --out=FOLDER
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

# The U-Net of SDXL as diffusers configures it; "tiny" has its parts, to try the script.
_BLOCKS = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    use_linear_projection=True,
)
SIZES: dict[str, dict[str, Any]] = {
    "sdxl": dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        projection_class_embeddings_input_dim=2816,
    ),
    "tiny": dict(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 2, 2),
        cross_attention_dim=64,
        projection_class_embeddings_input_dim=1536 + 64,
    ),
}
# Only without CUDA graphs: with them a step's memory does not fit beside the graphs' own.
MODES = {"eager": None, "compiled": "max-autotune-no-cudagraphs"}


def time_torch(size: str, device: str, images: int, warmup: int = 3, repeats: int = 7) -> dict:
    """Median seconds, peak GiB and seconds of the first step, eager and compiled: bf16 by autocast,
    everything kept for the backward pass, fused AdamW.
    """
    import torch
    from diffusers import UNet2DConditionModel

    found: dict[str, Any] = {"torch": torch.__version__, "images": images}
    for name, mode in MODES.items():
        torch.manual_seed(0)
        settings = SIZES[size]
        network = UNet2DConditionModel(**_BLOCKS, **settings).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=device != "cpu")
        model = torch.compile(network, mode=mode) if mode else network
        side, width = settings["sample_size"], settings["cross_attention_dim"]
        pooled = settings["projection_class_embeddings_input_dim"] - 6 * 256
        x = torch.randn(images, 4, side, side, device=device)
        inputs = dict(
            sample=x,
            timestep=torch.full((images,), 500, device=device),
            encoder_hidden_states=torch.randn(images, 77, width, device=device),
            added_cond_kwargs={
                "text_embeds": torch.randn(images, pooled, device=device),
                "time_ids": torch.full((images, 6), 1024.0, device=device),
            },
        )
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        first, *seconds = (
            _step_seconds(model, optimizer, inputs, device) for _ in range(1 + warmup + repeats)
        )
        peak = None if device == "cpu" else torch.cuda.max_memory_allocated()
        found[name] = dict(
            seconds=statistics.median(seconds[warmup:]), first_seconds=first, peak_memory=peak
        )
        del network, model, optimizer
        if device != "cpu":
            torch.cuda.empty_cache()
    return found


def _step_seconds(model: Any, optimizer: Any, inputs: dict[str, Any], device: str) -> float:
    """The time of one step, waited for."""
    import torch

    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
        output = model(**inputs).sample
        loss = torch.mean((output.float() - inputs["sample"]) ** 2)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(folder: Path) -> str:
    """All results of a folder as one table, which is also written there with ``figures.json``."""
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"))
        if path.stem != "figures"
    }
    rows = [("part", "images", "ms", "images/s", "MFU", "GiB", "compiled in s")]
    factors = []
    for name, result in found.items():
        for kind in ("train", "sample"):
            if kind in result:
                speed = result[kind]
                mfu = speed["mfu"]
                rows.append(
                    (
                        f"{name}, {kind}",
                        *_row(speed["images"], speed["seconds"], speed["peak_memory"], mfu),
                        f"{speed['compile_seconds']:.0f}",
                    )
                )
                if "kernels" in speed:
                    factors.append(_kernels(name, speed["kernels"]))
        for mode in MODES:
            if mode in result:
                speed = result[mode]
                row = _row(result["images"], speed["seconds"], speed["peak_memory"])
                rows.append((f"{name}, {mode}", *row, f"{speed['first_seconds']:.0f}"))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    text = "\n".join([*lines, *factors]) + "\n"
    (folder / "figures.json").write_text(json.dumps(found, indent=1))
    (folder / "figures.md").write_text(text)
    return text


def _row(images: int, seconds: float, memory: int | None, mfu: float | None = None) -> list[str]:
    return [
        str(images),
        f"{1e3 * seconds:.4g}",
        f"{images / seconds:.3g}",
        "" if mfu is None else f"{mfu:.1%}",
        "" if memory is None else f"{memory / 2**30:.1f}",
    ]


def _kernels(name: str, kernels: dict[str, Any]) -> str:
    """The kernels of one part: measured ms, roofline and factor by kind."""
    factors = kernels["factors"]
    lines = [
        "",
        f"{name}: {kernels['launched']} kernels; rest {factors['rest']:.3f}",
        "",
        "| kind | measured ms | roofline ms | factor |",
        "|---|---|---|---|",
    ]
    for sort, seconds in sorted(kernels["seconds"].items(), key=lambda item: -item[1]):
        roof, factor = kernels["roofline_seconds"].get(sort), factors["kinds"].get(sort)
        cells = [f"{1e3 * seconds:.4g}", f"{1e3 * roof:.4g}" if roof else ""]
        lines.append(f"| {sort} | {' | '.join(cells)} | {f'{factor:.2f}' if factor else ''} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("torch", "table"))
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    values = parser.parse_args()
    if values.part == "table":
        print(table(values.out))
        return
    found = time_torch(values.size, values.device, values.images)
    values.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
