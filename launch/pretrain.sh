#!/usr/bin/env bash
# Pre-trains one of the small generators (minutes on one H100, most of a day on 2 CPU cores).
# Usage:
#
#     bash launch/pretrain.sh latent | pixel | super | masked
#
# The weights in emu_jax/weights were trained like this, except latent_diffusion_64, whose model
# card describes its training. A family is trained on 1,024,000 images: first 7,000 batches in which
# half of the images are shaded, so that it learns its concepts in both styles; then 1,000 batches
# of the intended haystack, which is flat with few exceptions. Runs are saved in runs/pretrain. An
# interrupted call resumes where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
runs="runs/pretrain"
trap 'if [[ $? -ne 0 ]]; then echo "stopped in: $PART" >&2; fi' EXIT

# pretrain NAME FLUENT STEPS RATE [--config...]: FLUENT is the percentage of shaded images, RATE the
# learning rate.
pretrain() {
    local name="$1" fluent="$2" steps="$3" rate="$4"; shift 4
    part "$name"
    emu-jax train "$@" --workdir="$runs/$name" --config.data.data_dir="$EMU_JAX_DATA" \
        --config.data.cache_dir="$EMU_JAX_DATA/cache" --config.deterministic=False \
        --config.data.train.openmoji.weight="$((100 - fluent))" \
        --config.data.train.fluent.weight="$fluent" \
        --config.train.batch_size=128 --config.train.steps="$steps" \
        --config.groups.generator.optimizer.learning_rate="$rate"
}

# family NAME RATE [--config...]: both phases of pre-training.
family() {
    local name="$1" rate="$2"; shift 2
    pretrain "${name}_styles" 50 7000 "$rate" "$@"
    pretrain "$name" 12 1000 3e-4 "$@" --config.init_from="$runs/${name}_styles"
}

part "virtual environment"
setup_env quickstart
export PATH="$VENV/bin:$PATH"

part "data sets"
emu-jax data build emoji/openmoji --data_dir="$EMU_JAX_DATA"
emu-jax data build emoji/fluent --data_dir="$EMU_JAX_DATA"

case "${1:-}" in
    latent) family latent 1.2e-3 --config=configs/latent_diffusion.py:size=tiny ;;
    pixel) family pixel 1.2e-3 --config=configs/pixel_diffusion.py:size=tiny,part=base ;;
    super) pretrain super 50 8000 1e-3 --config=configs/pixel_diffusion.py:size=tiny,part=super ;;
    masked) family masked 1e-3 --config=configs/masked.py:size=tiny ;;
    *)
        sed -n '5p' "${BASH_SOURCE[0]}" | cut -c3- >&2
        exit 2
        ;;
esac
parts
