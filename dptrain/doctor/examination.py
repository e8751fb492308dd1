"""All checks of this process, and the report of it or of all ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dptrain.doctor import files, hdf5, machine, mpi, network, numeric, software
from dptrain.doctor.finding import FAILURE, Finding, fact, failure, run_all
from dptrain.doctor.isolated import TIMEOUT, EndedEarlyError, answers_of, run_isolated
from dptrain.system.launched import RANK_VARIABLES, first_number, launched_size

NOT_CONNECTED = (
    "see the lines of NumPy, MPI library and mpirun; start with dptrain launch; between hosts, check the firewall and "
    "give MPI the right network interface"
)
NEED_NUMPY = {"BLAS", "computation", "HDF5"}  # checks


@dataclass(frozen=True)
class Report:
    """What was found: each finding with the ranks that have it. `connected`: it is that of all ranks."""

    hosts: Sequence[str]  # of each rank
    findings: Sequence[tuple[Finding, Sequence[int]]]
    connected: bool = True

    @property
    def failed(self) -> bool:
        return any(finding.result == FAILURE for finding, _ in self.findings)

    def to_json(self) -> dict[str, Any]:
        findings = [{**finding.to_json(), "ranks": list(ranks)} for finding, ranks in self.findings]
        return {"failed": self.failed, "connected": self.connected, "hosts": list(self.hosts), "findings": findings}


def examine_process(timeout: float = TIMEOUT) -> list[Finding]:
    """The findings of this process alone. Each check of a library may take `timeout` seconds."""
    findings = run_all(software.checks())
    for name, module in (("NumPy", numeric), ("HDF5", hdf5), ("MPI library", mpi)):
        findings += run_isolated(name, f"{module.__name__}:checks", module.REMEDY, timeout)
    failed = {one.check for one in findings if one.result == FAILURE}
    if "NumPy" in failed:
        because = failed & NEED_NUMPY
        findings = [replace(one, remedy="repair NumPy first") if one.check in because else one for one in findings]
    findings += run_all(mpi.mpirun_checks(fact(findings, "mpi") or ""))
    return findings + run_all([*machine.checks(), *files.checks(), *network.checks()])


def started_by_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several ranks."""
    return launched_size() not in (None, 1) or environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def own_rank() -> int:
    """This process's rank according to its launcher, also if srun has started it without MPI."""
    return first_number((*RANK_VARIABLES, "SLURM_PROCID"))


def alone(findings: Sequence[Finding], *, connected: bool = True) -> Report:
    """The report of this process, as a single rank."""
    return Report([socket.gethostname()], [(finding, [0]) for finding in findings], connected)


def examine_ranks(findings: Sequence[Finding], timeout: float) -> Report:
    """The report of all ranks, in `timeout` seconds; of this process if the ranks cannot be connected."""
    try:
        (answer,) = answers_of("dptrain.doctor.ranks:connect_and_compare", [one.to_json() for one in findings], timeout)
    except EndedEarlyError as error:
        return not_connected(findings, f"MPI cannot connect the ranks: {error}")
    if "error" in answer:
        return not_connected(findings, answer["error"])
    return Report(answer["hosts"], [(Finding(**finding), ranks) for finding, ranks in answer["findings"]])


def not_connected(findings: Sequence[Finding], reason: str) -> Report:
    """The report of this process, with the reason why it is not that of all ranks."""
    return alone([*findings, replace(failure(reason, NOT_CONNECTED), check="ranks")], connected=False)
