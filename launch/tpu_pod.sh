#!/usr/bin/env bash
# One training run on all workers of a TPU VM pod, restarted until it is done: after a preemption on
# a new TPU, after a failure on the same one.
#
#   TPU=emu ZONE=us-west4-a TYPE=v5litepod-16 bash launch/tpu_pod.sh \
#       --config=configs/latent_diffusion.py:size=tiny --workdir=gs://BUCKET/runs/emu
#
# The arguments are those of `emu-jax train`. Every worker must have access to --workdir and the
# data. The code is this repository's HEAD. Run this script on any machine with gcloud; it runs
# until the training is done.
#
# TPU, ZONE, TYPE  the TPU's name (it is created if it does not exist), zone and accelerator type
# VERSION          runtime image, default v2-alpha-tpuv5-lite
# SPOT=1           a cheaper TPU that can be preempted at any time
# SETUP            a command for every worker before each start, to mount a disk or build data
# WAIT             seconds between two checks of a TPU that is not ready, default 30
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
git -C "$ROOT" archive --output="$archive" HEAD

tpu() {  # a gcloud command for this TPU
    gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$ZONE" --quiet
}

on_workers() {
    tpu ssh "$TPU" --worker="$1" --command="$2"
}

prepare() {
    tpu scp "$archive" "$TPU:emu_jax.tar.gz" --worker=all && on_workers all "
        set -e
        pkill -KILL -x emu-jax || true  # left over from an attempt that lost its connection
        mkdir -p emu_jax && tar -xzf emu_jax.tar.gz -C emu_jax && cd emu_jax
        which python3.11 > /dev/null || sudo apt-get install -qq python3.11 python3.11-venv
        export PYTHON=python3.11
        source launch/setup_env.sh && setup_env tpu
        export PATH=\"\$VENV/bin:\$PATH\"
        ${SETUP:-true}"
}

train() {  # prints the status of the first worker; nothing if it cannot be reached
    local arguments
    arguments="$(printf '%q ' "$@")"
    on_workers all "
        cd emu_jax && rm -f status
        PATH=\"\$PWD/.venv/bin:\$PATH\" emu-jax train $arguments
        echo \$? > status" >&2 || true
    on_workers 0 "cat emu_jax/status" || true
}

short=0  # consecutive attempts that ended within five minutes
while true; do
    case "$(tpu describe "$TPU" --format='value(state)' 2> /dev/null || echo NONE)" in
        READY) ;;
        NONE)
            tpu create "$TPU" --accelerator-type="$TYPE" \
                --version="${VERSION:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot} || sleep "${WAIT:-30}"
            continue
            ;;
        PREEMPTED | TERMINATED | STOPPED)
            tpu delete "$TPU" || sleep "${WAIT:-30}"
            continue
            ;;
        *)
            sleep "${WAIT:-30}"
            continue
            ;;
    esac
    begun=$SECONDS
    status=""
    if prepare; then
        status="$(train "$@")"
    fi
    case "$status" in
        0)
            echo "done; the TPU still exists, delete it with:" \
                "gcloud compute tpus tpu-vm delete $TPU --zone=$ZONE"
            exit 0
            ;;
        2) exit 2 ;;  # bad input that only the user can fix; the message is above
    esac
    short=$((SECONDS - begun < 300 ? short + 1 : 0))
    if ((short == 3)); then
        echo "three attempts in a row ended within five minutes; the log above has the reason" >&2
        exit 1
    fi
    echo "emu-jax ended with status ${status:-unknown}: restarting" >&2
done
