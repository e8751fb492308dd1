"""The network addresses of this host."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # Linux's request for the address of an interface, netdevice(7)


def interfaces() -> dict[str, str]:
    """The IPv4 address of each network interface of this host, by its name, except loopback."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # this one has no address
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("40s", name.encode()))
                found[name] = socket.inet_ntoa(answer[20:24])
    return {name: address for name, address in found.items() if not address.startswith("127.")}


def local_addresses() -> list[str]:
    """The IPv4 addresses of this host, except loopback. Makes no DNS request."""
    return sorted({*interfaces().values()})
