#!/usr/bin/env bash
#SBATCH --job-name=dptrain
#SBATCH --ntasks=2
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# A run under Slurm that outlives its time limit and its nodes, submitted from the checkout:
#
#     sbatch --ntasks=8 launch/slurm.sh data/cifar10 --run-dir runs/long [flags of `dptrain train`]
#
# Two minutes before the limit Slurm sends SIGUSR1 to this shell (--signal=B:); SIGTERM comes before a preemption. Both go
# to the launcher: the run saves a checkpoint and ends with status 75, and the job goes back into the queue, to go on from
# there when its turn comes. A rank that dies before is made up for by a restart within the job.
# PYTHON=/path/to/python names the interpreter (default: .venv/bin/python).

set -uo pipefail

launcher=
trap '[[ -z $launcher ]] || kill -USR1 "$launcher"' USR1 TERM
"${PYTHON:-.venv/bin/python}" -m launch -n "${SLURM_NTASKS:?set by sbatch}" --max-restarts 3 -- train "$@" &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" # ends early when a signal comes
done
wait "$launcher" # bash has kept its status
status=$?
if ((status == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
