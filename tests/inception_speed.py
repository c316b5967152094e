"""Throughput of Inception's features here and in torch-fidelity, in turns.

    python tests/inception_speed.py [ROUNDS]

Both have random weights, all threads, the same images, and resize them themselves.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fidelity import module

from emu_jax.evaluation.inception import FILES, open_inception

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
BATCH = 32


def main():
    extractors = module("feature_extractor_inceptionv3")
    with (
        mock.patch.object(extractors, "load_state_dict_from_url", lambda *_, **__: None),
        mock.patch.object(torch.nn.Module, "load_state_dict", lambda *_, **__: None),
    ):
        theirs = extractors.FeatureExtractorInceptionV3("any", ["2048", "logits_unbiased"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / FILES[0])
        ours = open_inception(Path(folder) / FILES[0])
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), np.uint8)
    tensor = torch.tensor(images).permute(0, 3, 1, 2)

    def run_theirs():
        with torch.inference_mode():
            theirs(tensor)

    seconds = {"emu_jax": [], "torch-fidelity": []}
    for i in range(ROUNDS + 1):
        for name, run in (("emu_jax", lambda: ours(images)), ("torch-fidelity", run_theirs)):
            start = time.perf_counter()
            run()
            if i:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    for name, found in seconds.items():
        print(f"{name}: {BATCH / statistics.median(found):.1f} images/s")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"ratio {statistics.median(ratios):.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
