#!/usr/bin/env bash
# One training as a Slurm job, a task for each GPU; started again by Slurm after a preemption, a time
# limit or a failure, it goes on from its last checkpoint. From the repository's folder:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/latent_diffusion.py:size=tiny --workdir=/shared/runs/emu
#
# The arguments are those of `emu-jax train`; repository, --workdir and data lie on a disk that every
# node sees. Without GPUs leave --gpus-per-node out. RESTARTS (default 100): how often to try again.
#SBATCH --job-name=emu-jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit this script hears of it.
#SBATCH --signal=B:TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit
export PATH="$PWD/.venv/bin:$PATH"

# Tells the tasks to save and end. One that is compiling does not hear it, and a job that meets its
# time limit is not started again: after 80 seconds they are ended.
end() {
    trap '' TERM
    scancel --signal=TERM "$SLURM_JOB_ID.0"
    { sleep 80 && scancel --signal=KILL "$SLURM_JOB_ID.0"; } > /dev/null 2>&1 &
}
trap end TERM

# One task that fails ends the others, also where they wait for it in silence.
srun --kill-on-bad-exit=1 emu-jax train "$@" &
step=$!
wait "$step"  # to its end, or until told to end
wait "$step"
status=$?  # the highest of the tasks
tried="${SLURM_RESTART_COUNT:-0}"
case "$status" in
    0) exit 0 ;;
    2) exit 2 ;;  # what only the user can mend: the log says it in one sentence
esac
if ((tried >= ${RESTARTS:-100})); then
    echo "emu-jax ended with status $status; no further start after $tried" >&2
    exit "$status"
fi
echo "emu-jax ended with status $status: started again, it goes on from the last checkpoint" >&2
scontrol requeue "$SLURM_JOB_ID"
