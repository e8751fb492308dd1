"""The hosts of a job, if a hostfile in the environment names them, and which of them can be reached."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .mpirun import Kind
from .screen import say

HOSTFILE = {Kind.OPEN_MPI: "PRTE_MCA_prte_default_hostfile", Kind.MPICH: "HYDRA_HOST_FILE"}
# "node1 slots=4" of Open MPI, "node1:4" of MPICH
LINE = re.compile(r"\s*([^\s:#]+)(?::(\d+))?(?:.*\bslots\s*=\s*(\d+))?")
SSH = ("ssh", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
PROBE_SECONDS = 15.0
SSH_FAILED = 255


def is_local(host: str) -> bool:
    """Whether an address of this machine has this name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))  # only an address of this machine can be bound
        return True
    return host == socket.gethostname()


def answers(host: str) -> bool:
    """Whether a host can be reached by ssh; whatever else fails there is not judged here."""
    if is_local(host):
        return True
    try:
        done = subprocess.run(
            [*SSH, host, "true"], capture_output=True, timeout=PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True  # no ssh here: mpirun reaches hosts by other means
    return done.returncode != SSH_FAILED


def slots_of(line: str) -> tuple[str, int | None] | None:
    """Host and number of slots, None if it is not given, of a line of a hostfile; None for a comment."""
    found = LINE.match(line)
    if found is None:
        return None
    number = found[2] or found[3]
    return found[1], None if number is None else int(number)


@contextmanager
def reachable_hosts(
    kind: Kind, environment: Mapping[str, str], ranks: int, min_ranks: int, probe: Callable[[str], bool] = answers
) -> Iterator[tuple[Mapping[str, str], int]]:
    """Environment and number of ranks of an attempt that leaves out hosts which cannot be reached.

    Both stay the same where no hostfile is named, all hosts can be reached, or the others have fewer slots than
    `min_ranks`.
    """
    named = environment.get(HOSTFILE[kind], "")
    try:
        lines = Path(named).read_text(encoding="utf-8", errors="surrogateescape").splitlines() if named else []
    except OSError:
        lines = []  # mpirun reports it
    entries = [(line, entry) for line in lines if (entry := slots_of(line)) is not None]
    hosts = sorted({host for _, (host, _) in entries})
    with ThreadPoolExecutor(max(1, min(len(hosts), 32))) as pool:
        gone = {host for host, there in zip(hosts, pool.map(probe, hosts), strict=True) if not there}
    kept = [(line, slots) for line, (host, slots) in entries if host not in gone]
    numbers = [slots for _, slots in kept if slots is not None]
    places = sum(numbers) if len(numbers) == len(kept) else ranks
    if not gone or not kept or places < min_ranks:
        yield environment, ranks
        return
    say(f"cannot be reached and left out: {', '.join(sorted(gone))}")
    with tempfile.NamedTemporaryFile("w", prefix="hosts-", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line, _ in kept)
        file.flush()
        yield {**environment, HOSTFILE[kind]: file.name}, min(ranks, places)
