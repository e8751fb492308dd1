"""All ranks together: connect them, compare their findings, and test what only several ranks show."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dptrain.doctor.finding import Check, Finding, described, fact, failure, ok, warning
from dptrain.errors import DptrainError

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

LENGTH = 1 << 18  # numbers of the vectors that are sent: 1 MiB
VERSIONS = ("dptrain", "python", "numpy", "h5py", "hdf5", "mpi4py", "library")  # facts
CLOCKS = 2.0  # seconds that the clocks of two hosts may differ
EXPLAINED = "start all ranks on CPUs of the same kind, with the same packages; or train with --portable"
UNEXPLAINED = "suspect the memory or the CPU of that host: test both, and do not train on it"
OTHER_SOFTWARE = "start with dptrain launch, or with mpirun -x PATH, so that all ranks run the same Python and packages"


def connect_and_compare(findings: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Start MPI with the findings of this rank; yields the report of all ranks, the same on each rank."""
    try:
        from dptrain.parallel.mpi import connect

        communicator, connection = connect()
    except Exception as error:  # for example, NumPy cannot be imported
        yield {"error": str(error) if isinstance(error, DptrainError) else described(error)}
        return
    yield compare(communicator, connection, [Finding(**one) for one in findings], socket.gethostname())


def compare(communicator: Communicator, connection: str, findings: list[Finding], host: str) -> dict[str, Any]:
    """The report of all ranks: their hosts, and their findings with the ranks of each. All ranks call this."""
    hosts = communicator.allgather(host)
    checks = [
        Check("ranks", lambda: ok(f"{connection} on {_count(len(set(hosts)), 'host')}"), ""),
        *together_checks(communicator, findings, host, several_hosts=len(set(hosts)) > 1),
    ]
    common = [check.run() for check in checks]
    everyone = communicator.allgather(([one.to_json() for one in findings], [one.to_json() for one in common]))
    merged = merge([[Finding(**one) for one in own + of_all] for own, of_all in everyone])
    return {"hosts": hosts, "findings": [(finding.to_json(), ranks) for finding, ranks in merged]}


def together_checks(
    communicator: Communicator, findings: list[Finding], host: str, *, several_hosts: bool
) -> list[Check]:
    """Checks in which all ranks take part; each has the same result on all ranks."""
    from dptrain.doctor.network import check_between_hosts

    report = "report this as a mistake"
    checks = [
        Check("same software", lambda: check_software(communicator, findings, host), report),
        Check("same bits", lambda: check_bits(communicator, findings, host), report),
        Check("cores for ranks", lambda: check_cores(communicator, host), "start fewer ranks on this host"),
        Check("collectives", lambda: check_collectives(communicator), "test MPI alone: mpirun -n 2 hostname"),
    ]
    if several_hosts:
        checks += [
            Check("clocks", lambda: check_clocks(communicator, host), "set the clocks of the hosts"),
            Check("UDP between hosts", lambda: check_between_hosts(communicator, host), report),
        ]
    return checks


def merge(everyone: list[list[Finding]]) -> list[tuple[Finding, list[int]]]:
    """Equal findings of several ranks once, with the ranks that have them; in the order of the checks."""
    by_check: dict[str, dict[Finding, list[int]]] = {}
    for rank, findings in enumerate(everyone):
        for finding in findings:
            by_check.setdefault(finding.check, {}).setdefault(finding, []).append(rank)
    return [(finding, ranks) for found in by_check.values() for finding, ranks in found.items()]


def check_software(communicator: Communicator, findings: list[Finding], host: str) -> Finding:
    """All ranks must run the same versions."""
    versions = {name: fact(findings, name) for name in VERSIONS}
    everyone = communicator.allgather((host, versions))
    first = everyone[0][1]
    for rank, (name, found) in enumerate(everyone):
        if different := differences(found, first):
            return warning(f"rank {rank} on {name} differs from rank 0: {different}", OTHER_SOFTWARE)
    return ok("the versions of dptrain, Python and the packages are the same on all ranks")


def check_bits(communicator: Communicator, findings: list[Finding], host: str) -> Finding:
    """The fixed computation must have the same SHA-256 on all ranks; if not, in what the ranks differ."""
    everyone = communicator.allgather((host, fact(findings, "sha256"), fact(findings, "environment")))
    results = [result for _, result, _ in everyone]
    if None in results:
        rank = results.index(None)
        return warning(
            f"not compared: rank {rank} on {everyone[rank][0]} has no result", "see the failed checks of that rank"
        )
    common = max(dict.fromkeys(results), key=results.count)
    if len(set(results)) == 1:
        return ok(f"all ranks computed SHA-256 {common[:16]}", sha256=common)
    usual = everyone[results.index(common)][2]
    other = [rank for rank, result in enumerate(results) if result != common]
    host, result, environment = everyone[other[0]]
    more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
    different = differences(environment, usual)
    found = (
        f"rank {other[0]} on {host}{more} computed SHA-256 {result[:16]}, {results.count(common)} of {len(results)} "
        f"computed {common[:16]}: {different or 'no difference of packages or CPU explains it'}"
    )
    return failure(found, EXPLAINED if different else UNEXPLAINED)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Values that differ, such as "blas_core is Zen, not Haswell"."""
    return ", ".join(
        f"{name} is {found.get(name)}, not {one}" for name, one in expected.items() if found.get(name) != one
    )


def check_cores(communicator: Communicator, host: str) -> Finding:
    """Each rank needs a core of its own."""
    from dptrain.parallel.pool import core_share

    shares: dict[str, list[float]] = {}
    for name, share in communicator.allgather((host, core_share(communicator))):
        shares.setdefault(name, []).append(share)
    for name, found in shares.items():
        if min(found) < 1 - 1e-9:
            return warning(
                f"{name} has {_count(len(found), 'rank')} on {sum(found):.3g} cores, expected a core for each rank",
                "start fewer ranks there; if the host has more cores, mpirun binds ranks to too few: --bind-to none",
            )
    return ok("each rank has at least one core of its own")


def check_collectives(communicator: Communicator) -> Finding:
    """Both ways to sum the gradient, for a vector of whole numbers, whose sum is exact in any order."""
    import numpy as np

    ranks, rank = communicator.size, communicator.rank
    pattern = (np.arange(LENGTH) % 64).astype(np.float32)
    own, total = pattern * (1 + rank % 8), pattern * sum(1 + other % 8 for other in range(ranks))
    ends = [LENGTH * number // ranks for number in range(ranks + 1)]
    counts = [end - start for start, end in itertools.pairwise(ends)]
    summed = own.copy()
    communicator.barrier()
    started = time.perf_counter()
    communicator.allreduce(summed)
    seconds = time.perf_counter() - started
    received = np.zeros(ranks * counts[rank], np.float32)
    communicator.alltoall(own, counts, received, [counts[rank]] * ranks)
    gathered = np.zeros(LENGTH, np.float32)
    communicator.allgather_slices(received.reshape(ranks, -1).sum(axis=0), gathered, counts)
    right = {"Allreduce": np.array_equal(summed, total), "Alltoallv and Allgatherv": np.array_equal(gathered, total)}
    wrong = [
        (name, other) for other, found in enumerate(communicator.allgather(right)) for name in found if not found[name]
    ]
    if wrong:
        return failure(f"{wrong[0][0]} gave a wrong sum on rank {wrong[0][1]}", "use another MPI library or network")
    slowest = max(communicator.allgather(seconds))
    return ok("Allreduce, Alltoallv and Allgatherv of 1 MiB give the right sum", allreduce_seconds=slowest)


def check_clocks(communicator: Communicator, host: str, now: Callable[[], float] = time.time) -> Finding:
    """The clocks of the hosts, read at almost the same time."""
    communicator.barrier()
    times = dict(reversed(communicator.allgather((host, now()))))
    early, late = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    apart = times[late] - times[early]
    if apart > CLOCKS:
        remedy = "set them by NTP: timedatectl set-ntp true; times of logs and files differ between the hosts"
        return warning(f"the clock of {late} is {apart:.1f} s ahead of that of {early}", remedy)
    return ok(f"the clocks of {len(times)} hosts are at most {CLOCKS:g} s apart")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
