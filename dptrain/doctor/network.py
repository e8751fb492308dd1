"""The network: the interfaces that MPI can use, and UDP, by which the watch notices ranks without progress."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from typing import TYPE_CHECKING

from dptrain.doctor.finding import Check, Finding, failure, ok, warning
from dptrain.system.addresses import interfaces, local_addresses

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

PATIENCE = 2.0  # seconds to wait for a datagram
LOOPBACK = "127.0.0.1"
SHARED = (
    "MPI may try it and hang; give it the right interface, for example: mpirun --mca btl_tcp_if_include eth0 "
    "(Open MPI), mpirun -iface eth0 (MPICH)"
)
UDP = "the watch cannot report ranks without progress: let the firewall pass UDP between the hosts of a run"


def checks() -> list[Check]:
    return [
        Check("loopback", check_loopback, "bring it up: ip link set lo up"),
        Check("network", check_interfaces, "see ip address"),
    ]


def check_loopback(address: str = LOOPBACK) -> Finding:
    """A TCP connection and a UDP datagram within this host, as mpirun and the watch use them."""
    try:
        with socket.create_server((address, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=PATIENCE).close()
    except OSError as error:
        remedy = "bring the loopback interface up: ip link set lo up; mpirun reaches its ranks through it"
        return failure(f"no TCP connection to {address}: {error.strerror or error}", remedy)
    with _receiver(address) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        token = secrets.token_bytes(16)
        try:
            sender.sendto(token, receiver.getsockname())
            arrived = receiver.recv(64) == token
        except OSError:
            arrived = False
    if not arrived:
        return warning(f"no UDP datagram to {address} arrives", "let the firewall of this host pass UDP to 127.0.0.1")
    return ok(f"TCP and UDP to {address} work")


def check_interfaces() -> Finding:
    """The network interfaces with an IPv4 address, by which ranks on other hosts reach this one."""
    found = interfaces()
    if not found:
        return ok("no IPv4 address except loopback: ranks on one host only", interfaces={})
    return ok(", ".join(f"{name} {address}" for name, address in found.items()), interfaces=found)


def check_between_hosts(communicator: Communicator, host: str) -> Finding:
    """Whether a UDP datagram arrives from every host at every other. All ranks call this; one of a host takes part."""
    hosts = communicator.allgather(host)
    first = {name: hosts.index(name) for name in hosts}
    with _receiver("") as receiver:
        everyone = communicator.allgather((receiver.getsockname()[1], local_addresses()))
        places = {name: everyone[rank] for name, rank in first.items()}
        token: bytes = communicator.broadcast(secrets.token_bytes(16))
        silent = _exchange(receiver, host, places, token) if first[host] == communicator.rank else []
    lost = [f"from {other} to {name}" for name, others in communicator.allgather((host, silent)) for other in others]
    if lost:
        return warning(f"no UDP datagram arrives {', '.join(lost[:4])}{' and others' * (len(lost) > 4)}", UDP)
    addresses = [address for _, found in places.values() for address in found]
    if shared := sorted({address for address in addresses if addresses.count(address) > 1}):
        return warning(f"several hosts have the address {shared[0]}, as of a bridge of Docker", SHARED)
    return ok(f"UDP works between {len(first)} hosts")


def _exchange(receiver: socket.socket, host: str, hosts: dict[str, tuple[int, list[str]]], token: bytes) -> list[str]:
    """Send this host's name to every other host; the hosts whose names have not arrived."""
    others = {name: place for name, place in hosts.items() if name != host}
    deadline, heard = time.monotonic() + PATIENCE, set[str]()
    for port, addresses in others.values():
        for address in addresses:
            with contextlib.suppress(OSError):
                receiver.sendto(token + host.encode(), (address, port))
    while heard < others.keys() and (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        with contextlib.suppress(OSError):
            datagram = receiver.recv(1024)
            if datagram.startswith(token):
                heard.add(datagram[len(token) :].decode(errors="replace"))
    return sorted(others.keys() - heard)


def _receiver(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.settimeout(PATIENCE)
    receiver.bind((address, 0))
    return receiver
