"""The hosts of a job: given by --hosts or --hostfile, and how many ranks each has."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dptrain.errors import UsageError
from dptrain.system.paths import typed_path
from dptrain.system.text import shown

# "node1" or "node1:4"; in a file also Open MPI's "node1 slots=4", possibly with other words
ENTRY = re.compile(r"([^\s:#=,]+)(?::(\d+))?(?:\s(?:.*\s)?slots\s*=\s*(\d+)(?:\s.*)?)?")
EXPECTED = "expected HOST or HOST:RANKS with at least 1 rank"
SSH = ("ssh", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")


def parse_hosts(entries: Iterable[str]) -> dict[str, int | None]:
    """The number of ranks of each host, None where none is given; UsageError for anything else.

    A host that is entered several times has the sum.
    """
    found: dict[str, int | None] = {}
    for entry in entries:
        parts = ENTRY.fullmatch(entry)
        if parts is None or "0" in (parts[2], parts[3]):
            raise UsageError(f"found {shown(repr(entry), 100)}, {EXPECTED}")
        number, before = parts[2] or parts[3], found.get(parts[1])
        found[parts[1]] = before if number is None else int(number) + (before or 0)
    if not found:
        raise UsageError(f"found no host, {EXPECTED}")
    return found


def read_hostfile(path: str) -> dict[str, int | None]:
    """As `parse_hosts`, of a file with one host in each line, and comments after #."""
    try:
        lines = Path(typed_path(path)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(path)} cannot be read: {error}") from None
    return parse_hosts(filter(None, (line.partition("#")[0].strip() for line in lines)))


def spread(hosts: Mapping[str, int | None], ranks: int | None) -> dict[str, int]:
    """The hosts with their ranks; UsageError where they have room for fewer than `ranks`.

    A host without a number has one rank, or an equal share of `ranks` if no host has a number.
    """
    if ranks is not None and not any(hosts.values()):
        share, more = divmod(ranks, len(hosts))
        return first_places({name: share + (place < more) for place, name in enumerate(hosts)}, ranks)
    places = {name: number or 1 for name, number in hosts.items()}
    room = sum(places.values())
    if ranks is not None and ranks > room:
        raise UsageError(f"-n {ranks}: the hosts have room for {room} ranks; give more, as in HOST:RANKS")
    return first_places(places, room if ranks is None else ranks)


def first_places(hosts: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The first hosts, with this many ranks together."""
    found = {}
    for name, places in hosts.items():
        if ranks > 0:
            found[name] = min(places, ranks)
        ranks -= places
    return found


def host_list(hosts: Mapping[str, int]) -> str:
    """node1:2,node2:2."""
    return ",".join(f"{name}:{ranks}" for name, ranks in hosts.items())


def is_local(host: str) -> bool:
    """Whether an address of this machine has this name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))  # only an address of this machine can be bound
        return True
    return host == socket.gethostname()


def answers(host: str) -> bool:
    """Whether a host can be reached by ssh; other failures of the command do not count."""
    if is_local(host):
        return True
    try:
        done = subprocess.run(
            [*SSH, host, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=15, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True  # no ssh here: mpirun reaches hosts by other means
    return done.returncode != 255  # ssh itself has failed


def reachable(hosts: Mapping[str, int]) -> dict[str, int]:
    """Those of the hosts that can be reached."""
    with ThreadPoolExecutor(max(1, min(len(hosts), 32))) as pool:
        return {name: hosts[name] for name, reached in zip(hosts, pool.map(answers, hosts), strict=True) if reached}
