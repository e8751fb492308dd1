"""dptrain.doctor.network: loopback, interfaces, and UDP between hosts that are threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping

import pytest
from thread_ranks import on_ranks

from dptrain.doctor import network
from dptrain.doctor.finding import FAILURE, OK, WARNING, Finding
from dptrain.doctor.network import check_between_hosts, check_interfaces, check_loopback
from dptrain.parallel.communicator import Communicator
from dptrain.system.addresses import interfaces, local_addresses


def test_an_address_that_this_host_does_not_have_fails() -> None:
    assert check_loopback().result == OK
    found = check_loopback("203.0.113.7")  # reserved for documentation
    assert (found.result, "203.0.113.7: Cannot assign requested address" in found.found) == (FAILURE, True)
    assert "ip link set lo up" in found.remedy


def test_blocked_udp_within_a_host_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(socket.socket):
        def sendto(self, *_: object) -> int:
            return 16

    monkeypatch.setattr(network, "PATIENCE", 0.1)
    monkeypatch.setattr(socket, "socket", Silent)
    assert check_loopback().result == WARNING


def test_the_interfaces_are_listed_with_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert interfaces().keys() <= names - {"lo"}
    assert sorted({*interfaces().values()}) == local_addresses()
    monkeypatch.setattr(network, "interfaces", lambda: {"eth0": "192.0.2.1", "wlan0": "192.0.2.9"})
    assert check_interfaces().found == "eth0 192.0.2.1, wlan0 192.0.2.9"
    monkeypatch.setattr(network, "interfaces", dict)
    assert "loopback" in check_interfaces().found


def between(hosts: list[str], addresses: Mapping[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What ranks find on these hosts, which have these addresses."""
    own = threading.local()
    monkeypatch.setattr(network, "PATIENCE", 0.5)
    monkeypatch.setattr(network, "local_addresses", lambda: addresses[own.host])

    def program(communicator: Communicator) -> Finding:
        own.host = hosts[communicator.rank]
        return check_between_hosts(communicator, own.host)

    return on_ranks(len(hosts), program)


def test_udp_between_hosts_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"a": ["127.0.0.1"], "b": ["127.0.0.2"], "c": ["127.0.0.3", "127.0.0.4"]}
    found = between(["a", "a", "b", "c", "b"], addresses, monkeypatch)
    assert {(one.result, one.found) for one in found} == {(OK, "UDP works between 3 hosts")}


@pytest.mark.slow
def test_a_host_that_no_datagram_reaches_is_reported_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = between(["a", "b", "b"], {"a": ["127.0.0.1"], "b": []}, monkeypatch)
    assert {(one.result, one.found) for one in found} == {(WARNING, "no UDP datagram arrives from a to b")}
    assert "firewall" in found[0].remedy


def test_an_address_of_several_hosts_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    found = between(["a", "b"], {"a": ["127.0.0.1", "127.0.0.9"], "b": ["127.0.0.2", "127.0.0.9"]}, monkeypatch)
    assert found[0].result == WARNING
    assert "several hosts have the address 127.0.0.9" in found[0].found
