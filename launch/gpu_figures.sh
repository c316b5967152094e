#!/usr/bin/env bash
# Measures one NVIDIA GPU for docs/records/speed.md in some eight minutes:
#
#     bash launch/gpu_figures.sh OUT [PART...]
#
# best8, best16    SDXL's step for 8 and 16 images with the settings that are planned best, and the
#                  time of its kernels by kind, from which the factors of gpu_factors.json come
# today8, today16  the same with the settings of the config: scans, remat=block
# torch8           for comparison SDXL's U-Net of diffusers: eager, and with torch.compile
# sample           one image of 1024 x 1024 pixels, from text states to pixels
# tests            tests/test_gpu.py
#
# Without PART: all, in the order of the list below. A part starts only if the seconds that it is
# expected to take are left of BUDGET (480), so that a job with a time limit ends with what was
# measured; what was left out is named, for another call. Every part is a process of its own, and a
# failure stops none of the others. Results: OUT/PART.json, OUT/PART.log, and of
# all parts OUT/figures.json and OUT/figures.md.
#
# It installs nothing: PYTHON (python3) has emu_jax with jax[cuda13], and for torch8 torch and
# diffusers. SIZE=tiny tries it on small networks, with DEVICE=cpu without a GPU.
#
# The script itself has not run on a GPU yet; its parts ran on a CPU with SIZE=tiny.
set -uo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
BUDGET="${BUDGET:-480}"
SIZE="${SIZE:-sdxl}"
DEVICE="${DEVICE:-cuda}"
if [[ $# -eq 0 ]]; then
    sed -n '4p' "${BASH_SOURCE[0]}" | cut -c3- >&2
    exit 2
fi
out="$(mkdir -p "$1" && cd "$1" && pwd)"
shift
cd "$ROOT" || exit
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# No memory is kept between parts, and kernels of CUDA graphs would have no name in a profile.
export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_PLATFORMS="$DEVICE"
profile=()
if [[ "$DEVICE" != cpu ]]; then
    profile=(--profile)
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer="
fi

# bench NAME [ARGUMENT...]: `emu-jax bench` of one config into OUT/NAME.json.
bench() {
    local name="$1"; shift
    "$PYTHON" -m emu_jax bench --config="configs/latent_diffusion.py:size=$SIZE,stage=quality_tune" \
        --config.deterministic=False --config.groups.generator.ema_decay=0 \
        --config.data.buckets=False --out="$out/$name" "${profile[@]}" "$@" &&
        mv "$out/$name/bench.json" "$out/$name.json" && rmdir "$out/$name"
}
best=(--config.denoiser.scan=False --config.denoiser.remat=none)
today=(--config.denoiser.scan=True --config.denoiser.remat=block)

# run_part NAME: one part.
run_part() {
    case "$1" in
        best8) bench best8 --measure=train --config.train.batch_size=8 "${best[@]}" ;;
        best16) bench best16 --measure=train --config.train.batch_size=16 "${best[@]}" ;;
        today8) bench today8 --measure=train --config.train.batch_size=8 "${today[@]}" ;;
        today16) bench today16 --measure=train --config.train.batch_size=16 "${today[@]}" ;;
        sample) bench sample --measure=sample --pictures=1 ;;
        torch8)
            "$PYTHON" launch/gpu_figures.py torch --size="$SIZE" --device="$DEVICE" --images=8 \
                --out="$out/torch8.json"
            ;;
        tests)
            JAX_PLATFORMS="" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_gpu.py &&
                echo '{"passed": true}' > "$out/tests.json"
            ;;
        *)
            echo "there is no part $1" >&2
            return 2
            ;;
    esac
}

# Seconds that a part takes on an H200, compilation included; partly measured, partly guessed.
declare -A expected=(
    [today8]=150 [torch8]=160 [best8]=330 [sample]=90 [tests]=60 [today16]=180 [best16]=360
)
parts=("$@")
if [[ ${#parts[@]} -eq 0 ]]; then
    parts=(today8 torch8 sample tests best8 today16 best16)
fi
status=0
for name in "${parts[@]}"; do
    left=$((BUDGET - SECONDS))
    needed="${expected[$name]:-0}"
    if ((needed > left)); then
        echo "$name: left out, it takes some $needed s and $left s are left"
        continue
    fi
    start=$SECONDS
    if run_part "$name" > "$out/$name.log" 2>&1; then
        echo "$name: done in $((SECONDS - start)) s"
    else
        echo "$name: failed after $((SECONDS - start)) s; the end of $out/$name.log:" >&2
        tail -n 5 "$out/$name.log" >&2
        status=1
    fi
done
"$PYTHON" launch/gpu_figures.py table --out="$out" || status=1
exit $status
