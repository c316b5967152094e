#!/usr/bin/env bash
# From a bare machine (Linux, Python 3.11, pip) to a report of three quality-tuned generators, each
# before and after, in about twenty minutes on 2 CPU cores. Nothing outside this folder and EMU_JAX_DATA
# (default ~/emu_jax_data) is written; run again, it reuses the environment and the data, and a
# broken-off tuning goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
run="runs/quickstart"
report="$run/report"
# Buffers of a step on huge pages, and kept between steps: 8 % more pictures a second on a CPU.
tunables="glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$tunables:glibc.malloc.trim_threshold=17179869184}"
# A model and what tuning made of it are one program to compile.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/$run/programs}"
trap 'if [[ $? -ne 0 ]]; then echo "stopped in: $PART" >&2; fi' EXIT

part "virtual environment"
setup_env quickstart
export PATH="$VENV/bin:$PATH"

part "pictures"  # the haystack's style, and the finish that tuning is to learn
emu-jax data build emoji/openmoji --data_dir="$EMU_JAX_DATA"
emu-jax data build emoji/fluent --data_dir="$EMU_JAX_DATA"

# tune NAME CONFIG: a hundred steps of quality-tuning as the config does it. What is drawn, judged
# and measured on the way otherwise is left to the report.
tune() {
    part "quality-tuning $1"
    emu-jax train --config="$2,stage=quality_tune" --config.data.data_dir="$EMU_JAX_DATA" \
        --workdir="$run/$1" --config.train.steps=100 --config.train.validate_every=0 \
        --config.train.preview_every=0
}

tune latent configs/latent_diffusion.py:size=tiny
tune pixel configs/pixel_diffusion.py:size=tiny,part=base
tune masked configs/masked.py:size=tiny

part "before and after"
super="builtin:pixel_super_64"
emu-jax compare builtin:latent_diffusion_64 "$run/latent" \
    "builtin:pixel_diffusion_32+$super" "$run/pixel+$super" builtin:masked_64 "$run/masked" \
    --data_dir="$EMU_JAX_DATA" --kept= --out="$report"

parts
printf '\nThe report: %s\n' "$ROOT/$report/index.html"
