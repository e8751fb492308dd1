"""The network addresses of this host."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # Linux's request for the address of an interface, netdevice(7)


def local_addresses() -> list[str]:
    """The IPv4 addresses of this host's interfaces, except loopback. Makes no DNS request."""
    found: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # this one has no address
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("40s", name.encode()))
                found.add(socket.inet_ntoa(answer[20:24]))
    return sorted(address for address in found if not address.startswith("127."))
