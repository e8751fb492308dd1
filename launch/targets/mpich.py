"""MPICH's mpirun (Hydra)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..hosts import host_list
from .target import SSH_LIMITS, Outcome, Target, signal_name

# Where one of these is set, ranks on other hosts are not started by ssh, or the user has chosen its flags.
OTHER_LAUNCHERS = {
    *("HYDRA_LAUNCHER", "HYDRA_LAUNCHER_EXEC", "HYDRA_LAUNCHER_EXTRA_ARGS", "HYDRA_BOOTSTRAP"),
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE"),
}
# On standard output: "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)"
KILLED = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (\d+)\)")
# "[mpiexec@node1] HYDT_bscu_wait_for_completion (...): one of the processes terminated badly; aborting"
LOST = "one of the processes terminated badly"


class MPICH(Target):
    """mpirun of MPICH 3 or later. It passes all variables on to all hosts, and SIGTERM to the ranks."""

    # Not SIGUSR1: MPICH's ranks handle it themselves until the trainer does, and lose it.
    banner = "HYDRA"
    notices = re.compile(
        rb"(?m)^\n?={60,}\n=   BAD TERMINATION[\s\S]*?^Please see the FAQ page for debugging suggestions\s*?\n"
        rb"|^(?:\[(?:mpiexec|proxy:[^\]@]*)@[^\]]*\]|Abort\(\d+\) on node \d+) .*\n"
    )

    def command(
        self, program: Sequence[str], ranks: int, hosts: Mapping[str, int], environment: Mapping[str, str]
    ) -> list[str]:
        """Ranks bind themselves to cores (`dptrain.system.cores`), so mpirun does not."""
        where = ["-hosts", host_list(hosts)] if hosts else []
        return [self.starter, *where, "-bind-to", "none", "-n", str(ranks), *program]

    def variables(self, environment: Mapping[str, str], hosts: Mapping[str, int]) -> dict[str, str]:
        by_ssh = (hosts or "HYDRA_HOST_FILE" in environment) and not OTHER_LAUNCHERS & environment.keys()
        return {"HYDRA_LAUNCHER_EXTRA_ARGS": SSH_LIMITS} if by_ssh else {}

    def outcome(self, returncode: int, output: str) -> Outcome:
        ended = super().outcome(returncode, output)
        if found := KILLED.search(output):
            number = int(found[1])
            status = 128 + number if returncode == number else ended.status  # mpirun returns the signal's number
            reason = f"a rank was killed by {signal_name(number)}"
            return replace(ended, status=status, reason=reason, rank_died=True)
        if LOST in output:
            return replace(ended, reason="a rank on another host has died, or the host is lost")
        return ended
