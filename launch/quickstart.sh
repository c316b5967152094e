#!/usr/bin/env bash
# Quality-tunes three generators and writes a report that compares each before and after tuning. It
# needs only Linux, Python 3.11 and pip, and takes about twenty minutes on 2 CPU cores. It writes
# nothing outside this folder and EMU_JAX_DATA (default ~/emu_jax_data). Another call reuses the
# environment and the data, and resumes an interrupted tuning run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
run="runs/quickstart"
report="$run/report"
# Puts the buffers of a step on huge pages and keeps them between steps: 8 % more images per second
# on a CPU.
tunables="glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$tunables:glibc.malloc.trim_threshold=17179869184}"
# With the cache, a model is compiled only once for its versions before and after tuning.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/$run/programs}"
trap 'if [[ $? -ne 0 ]]; then echo "stopped in: $PART" >&2; fi' EXIT

part "virtual environment"
setup_env quickstart
export PATH="$VENV/bin:$PATH"

part "data sets"  # the style of the haystack, and the finish that tuning teaches
emu-jax data build emoji/openmoji --data_dir="$EMU_JAX_DATA"
emu-jax data build emoji/fluent --data_dir="$EMU_JAX_DATA"

# tune NAME CONFIG: a hundred steps of quality-tuning with the config. Validation and previews
# during training are off, because the report does both.
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
