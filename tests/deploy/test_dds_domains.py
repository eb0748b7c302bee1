"""Domains of DDS: opened once per process by whichever thread, and errors that say why one cannot be opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")

import dds_peer

from robot_cl.deploy.dds_node import PLACES, Node, configuration, domain_id

HERE = Path(__file__).parent


def test_a_domain_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert domain_id() == 42 and domain_id(7) == 7
    monkeypatch.setenv("ROS_DOMAIN_ID", "here")
    with pytest.raises(ValueError, match="ROS_DOMAIN_ID"):
        domain_id()
    assert 'address="127.0.0.1"' in configuration("lo", ("127.0.0.1",), False)
    with pytest.raises(LookupError, match="codec"):
        Node(7, codec="quick")


def test_an_interface_that_is_not_there_and_a_broken_configuration_are_explained(
    domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in ("nobody.invalid", "nobody.invalid:7400", ""):
        with pytest.raises(ValueError, match="neither an address nor a host"):
            Node(domain, peers=(peer,))
    with pytest.raises(ValueError, match=r"no network interface 'nowhere0' here; there are .*lo"):
        Node(domain, interface="nowhere0")
    monkeypatch.setenv("CYCLONEDDS_URI", "<CycloneDDS><Nonsense/></CycloneDDS>")
    with pytest.raises(OSError, match="is CYCLONEDDS_URI right"):
        Node(domain)


def test_threads_may_open_one_domain_at_the_same_time() -> None:
    def opened(domain: int) -> None:
        together.wait()
        try:
            Node(**dds_peer.network(domain)).close()
        except (OSError, ValueError) as problem:
            problems.append(problem)

    problems, together = list[Exception](), threading.Barrier(4)
    for domain in [dds_peer.free_domain() for _ in range(6)]:
        threads = [threading.Thread(target=opened, args=(domain,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_a_domain_with_other_settings_and_one_without_a_place_say_what_to_do(domain: int) -> None:
    Node(**dds_peer.network(domain)).close()
    with pytest.raises(ValueError, match="with other settings; give the same interface, peers and multicast"):
        Node(domain, interface="lo")
    full, taken = dds_peer.free_domain(), list[socket.socket]()
    for port in range(7400 + 250 * full + 10, 7400 + 250 * full + 10 + 2 * PLACES):
        taken.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        taken[-1].bind(("127.0.0.1", port))
    with pytest.raises(OSError, match=f"{PLACES} programs of this machine .* another domain"):
        Node(**dds_peer.network(full))
    for held in taken:
        held.close()
    Node(**dds_peer.network(full)).close()  # what was refused may be tried again


def test_a_domain_is_given_to_one_process_only() -> None:
    before = len(dds_peer.reserved)
    given = {dds_peer.free_domain() for _ in range(25)}
    script = "import dds_peer; print(*[dds_peer.free_domain() for _ in range(25)])"
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    for held in dds_peer.reserved[before:]:  # for others
        held.close()
    assert len(given) == 25 and given.isdisjoint(map(int, other.stdout.split()))
