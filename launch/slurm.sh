#!/usr/bin/env bash
# One training run as a Slurm job with one task per GPU. After a preemption, a time limit or a
# failure Slurm restarts it, and it resumes from its last checkpoint. Run this in the repository's
# folder:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/latent_diffusion.py:size=tiny --workdir=/shared/runs/emu
#
# The arguments are those of `emu-jax train`. The repository, --workdir and the data must be on a
# disk that all nodes share. Without GPUs leave out --gpus-per-node. RESTARTS (default 100) is the
# maximum number of restarts.
#SBATCH --job-name=emu-jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Slurm sends this script SIGTERM two minutes before the time limit.
#SBATCH --signal=B:TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit
export PATH="$PWD/.venv/bin:$PATH"

# Requests the tasks to save and exit. A task that is compiling does not react to the signal, and a
# job that reaches its time limit is not restarted, so the tasks are killed after 80 seconds.
end() {
    trap '' TERM
    scancel --signal=TERM "$SLURM_JOB_ID.0"
    { sleep 80 && scancel --signal=KILL "$SLURM_JOB_ID.0"; } > /dev/null 2>&1 &
}
trap end TERM

# A task that fails ends all tasks, even if the others only wait for it.
srun --kill-on-bad-exit=1 emu-jax train "$@" &
step=$!
wait "$step"  # returns when the step ends or on SIGTERM
wait "$step"
status=$?  # the highest status of all tasks
tried="${SLURM_RESTART_COUNT:-0}"
case "$status" in
    0) exit 0 ;;
    2) exit 2 ;;  # bad input that only the user can fix; the log has the message
esac
if ((tried >= ${RESTARTS:-100})); then
    echo "emu-jax ended with status $status; stopping after $tried restarts" >&2
    exit "$status"
fi
echo "emu-jax ended with status $status: restarting from the last checkpoint" >&2
scontrol requeue "$SLURM_JOB_ID"
