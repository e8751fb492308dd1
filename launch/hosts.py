"""The hosts of a job: named by --hosts or --hostfile, and how many ranks each has."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dptrain.errors import UsageError
from dptrain.system.paths import typed_path
from dptrain.system.text import shown

# "node1" or "node1:4"; in a file also Open MPI's "node1 slots=4", with other words around
ENTRY = re.compile(r"([^\s:#=,]+)(?::(\d+))?(?:\s(?:.*\s)?slots\s*=\s*(\d+)(?:\s.*)?)?")
EXPECTED = "expected HOST or HOST:RANKS with at least 1 rank"
SSH = ("ssh", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
PROBE_SECONDS = 15.0
SSH_FAILED = 255


@dataclass(frozen=True)
class Host:
    """A host, and how many ranks it has."""

    name: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.name}:{self.ranks}"


def parse_hosts(entries: Iterable[str], source: str) -> dict[str, int | None]:
    """The number of ranks of each host, None where none is given; UsageError for anything else. `source` is for errors.

    A host that is entered several times has the sum.
    """
    found: dict[str, int | None] = {}
    for entry in entries:
        parts = ENTRY.fullmatch(entry)
        if parts is None or "0" in (parts[2], parts[3]):
            raise UsageError(f"{source}: found {shown(repr(entry), 100)}, {EXPECTED}")
        number, before = parts[2] or parts[3], found.get(parts[1])
        found[parts[1]] = before if number is None else int(number) + (before or 0)
    if not found:
        raise UsageError(f"{source}: found no host, {EXPECTED}")
    return found


def read_hostfile(path: str) -> dict[str, int | None]:
    """As `parse_hosts`, of a file with a host a line and comments after #; UsageError where it cannot be read."""
    try:
        lines = Path(typed_path(path)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--hostfile {shown(path)}: cannot be read: {error}") from None
    entries = (line.partition("#")[0].strip() for line in lines)
    return parse_hosts(filter(None, entries), f"--hostfile {shown(path)}")


def spread(hosts: dict[str, int | None], ranks: int | None) -> list[Host]:
    """The hosts with their ranks; UsageError where they have room for fewer than `ranks`.

    A host without a number has one rank, or an equal share of `ranks` if no host has a number.
    """
    if ranks is not None and not any(hosts.values()):
        each, more = divmod(ranks, len(hosts))
        return [Host(name, each + (place < more)) for place, name in enumerate(hosts) if each + (place < more)]
    whole = [Host(name, number or 1) for name, number in hosts.items()]
    places = places_of(whole)
    if ranks is not None and ranks > places:
        raise UsageError(f"-n {ranks}: the hosts have room for {places} ranks; give more, as in HOST:RANKS")
    return first_places(whole, places if ranks is None else ranks)


def places_of(hosts: Iterable[Host]) -> int:
    """The ranks of all hosts together."""
    return sum(host.ranks for host in hosts)


def first_places(hosts: Iterable[Host], ranks: int) -> list[Host]:
    """The first hosts, with this many ranks together."""
    found = []
    for host in hosts:
        if ranks > 0:
            found.append(Host(host.name, min(host.ranks, ranks)))
        ranks -= host.ranks
    return found


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


def reachable(hosts: Sequence[Host], probe: Callable[[str], bool] = answers) -> list[Host]:
    """Those of the hosts that can be reached."""
    with ThreadPoolExecutor(max(1, min(len(hosts), 32))) as pool:
        there = pool.map(probe, [host.name for host in hosts])
        return [host for host, reached in zip(hosts, there, strict=True) if reached]
