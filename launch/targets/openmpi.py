"""Open MPI's mpirun (PRRTE)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dptrain.errors import DptrainError
from dptrain.system.record import OWNER, VARIABLE
from dptrain.system.text import shown

from ..hosts import host_list
from .target import NOT_ELASTIC, SSH_LIMITS, Outcome, Target, signal_name

# Variables that decide which program runs, how it computes and what it prints.
FORWARDED = re.compile(
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON\w*|VIRTUAL_ENV|CONDA_\w+|DPTRAIN_\w+|LANG|LC_\w+|COLUMNS|TTY_COMPATIBLE"
    r"|(OMP|KMP|OPENBLAS|GOTO|MKL|BLIS|VECLIB|NPY|HDF5|MPI4PY)_\w+"
)
SSH_SETTINGS = re.compile(r"\w+_plm_(ssh|rsh)_(args|agent)")
# TCP keepalive between mpirun and its daemons: the loss of a host is noticed after 1 minute, not after 8.
KEEPALIVE = {"time": 20, "intvl": 10, "probes": 4}
# "prterun noticed that process rank 0 with PID 15569 on node vm exited on\nsignal 9 (Killed)."
KILLED = re.compile(r"noticed that process rank (\d+) with PID \d+ on\s+node (\S+)\s+exited\s+on\s+signal (\d+)")
# "prterun has exited due to process rank 1 with PID 3635 on node vm exiting\nimproperly."
LEFT = re.compile(r"has exited due to process rank (\d+) with PID \d+ on\s+node (\S+)\s+exiting\s+improperly")
# "Process name: [prterun-vm-3438@1,1]\n   Exit code:    1"
EXITED = re.compile(r"Process name: \[[^\]\s]*,(\d+)\]\s+Exit code:\s+(\d+)")
RULE, LINES = rb"\0?-{60,}\s*?\n", rb"(?:(?!\0?-{60}).*\n)*?"
NOTICE = (
    rb"MPI_ABORT was invoked on rank|noticed that process rank|has exited due to process rank|Primary job\s+terminated"
    rb"|one or more processes exited with non-zero status|A process has executed an operation"
)


class OpenMPI(Target):
    """mpirun of Open MPI 4 or later."""

    banner = "Open MPI"
    save_signal = signal.SIGUSR1  # forwarded to the ranks; after SIGINT and SIGTERM mpirun kills them within 0.5 s
    notices = re.compile(
        rb"(?m)^\0?\[[^\]\s]+:\d+\] PMIX ERROR: .*\n|^%b%b.*(?:%b).*\n%b%b" % (RULE, LINES, NOTICE, LINES, RULE)
    )
    elastic = False

    def command(
        self, program: Sequence[str], ranks: int, hosts: Mapping[str, int], environment: Mapping[str, str]
    ) -> list[str]:
        """Ranks bind themselves to cores (`dptrain.system.cores`), so mpirun does not, nor does it count cores."""
        flags = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        if self.elastic:
            flags += ["--with-ft", "ulfm"]
        if hosts:
            flags += ["--host", host_list(hosts)]
        flags += ["--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
        forwarded = {name for name in environment if FORWARDED.fullmatch(name)} - {OWNER} | {VARIABLE}
        for name in sorted(forwarded):
            flags += ["-x", name]
        return [self.starter, *flags, "-n", str(ranks), *program]

    def variables(self, environment: Mapping[str, str], hosts: Mapping[str, int]) -> dict[str, str]:
        """Limits on how long mpirun waits for other hosts.

        In a Slurm job, mpirun starts its daemons by srun, which would wait until a lost step of an earlier attempt has
        ended: with SLURM_OVERLAP it does not.
        """
        made = {"SLURM_OVERLAP": "1"} if "SLURM_JOB_ID" in environment else {}
        made |= {f"PRTE_MCA_oob_tcp_keepalive_{name}": str(value) for name, value in KEEPALIVE.items()}
        if not any(SSH_SETTINGS.fullmatch(name) for name in environment):
            made["PRTE_MCA_plm_ssh_args"] = SSH_LIMITS
        return {name: value for name, value in made.items() if name not in environment}

    def make_elastic(self) -> None:
        found = re.search(r"\(Open MPI\) (\d+)", self.version)
        if found is None or int(found[1]) < 5:
            raise DptrainError(NOT_ELASTIC.format(self.version.strip().partition("\n")[0]))
        self.elastic = True

    def outcome(self, returncode: int, output: str) -> Outcome:
        ended = super().outcome(returncode, output)
        if found := KILLED.search(output):
            reason = f"rank {found[1]} on {found[2]} was killed by {signal_name(int(found[3]))}"
        elif found := LEFT.search(output):
            reason = f"rank {found[1]} on {found[2]} ended without a report, as after os._exit"
        elif found := EXITED.search(output):
            reason = f"rank {found[1]} ended with status {found[2]} without a report"
        else:
            return ended
        return replace(ended, reason=shown(reason), rank_died=True)
