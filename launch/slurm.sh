#!/usr/bin/env bash
#SBATCH --job-name=dptrain
#SBATCH --ntasks=2
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# A run under Slurm that survives its time limit, preemption and lost nodes. Submit it from the checkout:
#
#     sbatch --ntasks=8 launch/slurm.sh data/cifar10 --run-dir runs/long [flags of `dptrain train`]
#
# What happens to the job, tested with Slurm 22.05:
#
#   time limit      Slurm sends SIGUSR1 to this script 2 minutes before (--signal=B:USR1@120). The run saves a checkpoint
#                   and ends with status 75, and the script requeues the job, which resumes from there. So does
#                   `scancel --signal=USR1 --batch JOB`.
#   scancel JOB     The run saves a checkpoint and ends with status 75. The job is cancelled and not requeued. Slurm waits
#                   KillWait seconds (30 by default) before it kills: a checkpoint must not take longer.
#                   `scancel --batch JOB` kills at once (SIGKILL); `--signal=TERM --batch` saves first.
#   preemption      Slurm signals this script first only if the partition or QOS has a GraceTime and slurm.conf has
#                   SlurmctldParameters=preempt_send_user_signal (PreemptParameters=send_user_signal in later versions):
#                   the same as the time limit then. Otherwise the job is killed, and resumes from its last checkpoint
#                   after Slurm has requeued it (PreemptMode=REQUEUE): give train a --checkpoint-every. A GraceTime alone
#                   sends SIGTERM to the steps of srun only, never to this script.
#   lost rank       The launcher restarts the run in the same job, up to 3 times.
#   lost node       Slurm requeues the job itself (--requeue, and JobRequeue=1 in slurm.conf).
#   other failures  The script requeues the job, except after status 1 (a permanent error) or 2 (a wrong command line), and
#                   after MAX_REQUEUES (20) requeues of any kind.
#
# PYTHON=/path/to/python names the interpreter (default: .venv/bin/python).

set -uo pipefail

launcher= cancelled=
pass_on() { [[ -z $launcher ]] || kill -s "$1" "$launcher"; }
trap 'pass_on USR1' USR1
trap 'cancelled=yes; pass_on TERM' TERM
"${PYTHON:-.venv/bin/python}" -m launch --max-restarts 3 -- train "$@" &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" # returns early when a signal arrives
done
wait "$launcher" # bash has kept its status
status=$?

say() { echo "slurm.sh: $*" >&2; }
if [[ -n $cancelled ]]; then
    say "cancelled: status $status, not requeued"
elif ((status > 2)); then
    if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_REQUEUES:-20})); then
        say "status $status after ${SLURM_RESTART_COUNT:-0} requeues: not requeued; MAX_REQUEUES=N allows more"
    else
        say "status $status: the job is requeued and resumes from its last checkpoint"
        scontrol requeue "$SLURM_JOB_ID" || say "scontrol requeue failed: submit the same job again to resume"
    fi
fi
exit "$status"
