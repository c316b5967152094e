"""Reading images against torch's DataLoader with torchvision's transforms. A command, no test.

    python tests/reader_speed.py [--images=256] [--side=512] [--threads=2] [--rounds=3]

JPEGs of 1024 x 1024 are decoded, cropped at random, resized and stacked into batches, by each
reader in turn and several times. Printed are the images per second, and per second of CPU time
(which other programs on the machine change less), the medians over the rounds, and the ratio to the
first reader. WebDataset, the reader of what img2dataset writes, is measured too if it is there
(`pip install webdataset`). torchvision's compiled decoder cannot be loaded beside a CPU build of
torch, so all decode with Pillow.
"""

import argparse
import importlib.util
import io
import os
import resource
import tarfile
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torchvision_models
from PIL import Image

from emu_jax.data.builder import build
from emu_jax.data.mixture import Selection
from emu_jax.data.pipeline import StreamSpec, make_stream

BATCH_SIZE, STORED = 32, 1024


def write_images(folder: Path, count: int) -> None:
    """Smooth random images with some noise; a JPEG of quality 90 takes about 300 KB."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((STORED, STORED), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=90)


class Files(torch.utils.data.Dataset):
    """A folder of images as torch programs read it."""

    def __init__(self, folder: Path, transform):
        self.files, self.transform = sorted(folder.glob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.files[index].read_bytes())) as image:
            return self.transform(image.convert("RGB"))


def transform(side: int, interpolation: str):
    transforms = torchvision_models.part("transforms")
    mode = getattr(transforms.InterpolationMode, interpolation)
    steps = [
        transforms.Resize(side, interpolation=mode),
        transforms.RandomCrop(side),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    return transforms.Compose(steps)


def torch_reader(folder: Path, side: int, threads: int, interpolation: str):
    files = Files(folder, transform(side, interpolation))

    def read() -> int:
        loader = torch.utils.data.DataLoader(
            files, BATCH_SIZE, shuffle=True, num_workers=threads, drop_last=True
        )
        return sum(len(batch) for batch in loader)

    return read


def web_reader(folder: Path, side: int, threads: int, interpolation: str):
    """A tar file for each process, in the order that WebDataset draws."""
    import webdataset

    files = sorted(folder.glob("*.jpg"))
    tars = [str(folder.parent / f"{i:05}.tar") for i in range(threads)]
    for i, name in enumerate(tars):
        with tarfile.open(name, "w") as tar:
            for file in files[i::threads]:
                tar.add(file, file.name)
    rows = webdataset.WebDataset(tars, shardshuffle=threads).shuffle(1000).decode("pilrgb")
    rows = rows.to_tuple("jpg").map_tuple(transform(side, interpolation))

    def read() -> int:
        batches = rows.batched(BATCH_SIZE, partial=False)
        loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=threads)
        return sum(len(batch) for (batch,) in loader)

    return read


def our_reader(source, side: int, threads: int, **options):
    steps = len(source) // BATCH_SIZE
    spec = StreamSpec(
        BATCH_SIZE, side, crop="random", flip=True, threads=threads, num_steps=steps, **options
    )

    def read() -> int:
        with closing(make_stream(spec, [Selection(source)], {})) as batches:
            return sum(len(batch["image"]) for batch in batches)

    return read


def measure(read) -> tuple[float, float]:
    """Images per second, and per second of CPU time of this process and its children."""
    start, worked = time.perf_counter(), _cpu_seconds()
    count = read()
    return count / (time.perf_counter() - start), count / (_cpu_seconds() - worked)


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    values = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        folder.mkdir()
        write_images(folder, values.images)
        source = build("folder/speed", Path(place, "data"), path=folder)
        size = (values.side, values.threads)
        readers = {
            "torch DataLoader, torchvision, bilinear": torch_reader(folder, *size, "BILINEAR"),
            "torch DataLoader, torchvision, Lanczos": torch_reader(folder, *size, "LANCZOS"),
            **(
                {"WebDataset, torchvision, bilinear": web_reader(folder, *size, "BILINEAR")}
                if importlib.util.find_spec("webdataset")
                else {}
            ),
            "emu_jax, Lanczos": our_reader(source, *size),
            "emu_jax, scaled_decoding": our_reader(source, *size, scaled_decoding=True),
        }
        found = {name: [] for name in readers}
        for _ in range(values.rounds):
            for name, read in readers.items():
                found[name].append(measure(read))
    print(f"{values.images} images to {values.side} x {values.side}, {values.threads} processes or")
    print(f"threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(
        "| reader | images per second | per CPU second | ratio of the latter |\n|---|---|---|---|"
    )
    first = None
    for name, rounds in found.items():
        wall, cpu = np.median(rounds, axis=0)
        first = first or cpu
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {cpu / first:.2f} |")


if __name__ == "__main__":
    main()
