"""A DDS participant that ROS 2 nodes hear and are heard by, with pip packages only.

What it takes: topics "rt/<name>", mangled type names, @final types in XCDR1, reliable keep-last-1 writers, best-effort
keep-last-1 readers, and the type's hash in USER_DATA. With any of these otherwise, both sides stay silent.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from xml.sax.saxutils import quoteattr

from cyclonedds.core import DDSException, Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import make_idl_struct
from cyclonedds.idl import types as idl_types
from cyclonedds.idl.annotations import final
from cyclonedds.internal import InvalidSample
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from robot_cl.deploy import dds_raw
from robot_cl.deploy.cdr import decode, encode
from robot_cl.deploy.messages import SCHEMAS, Message, from_fields, split_type

CODECS = ("fast", "public")
_IDL: Any = idl_types  # its generics are invisible to a type checker
_PRIMITIVE: dict[str, Any] = {
    "int32": _IDL.int32, "uint32": _IDL.uint32, "float64": _IDL.float64, "string": str
}  # fmt: skip
WRITE_TIMEOUT_MS = 20
PLACES = 31  # participants of one domain on one machine that find each other without multicast
_OPENING = threading.Lock()  # the library refuses a domain that another thread has opened meanwhile
_DOMAINS: dict[int, tuple[str, Domain]] = {}  # by number, with its settings: until this process ends
_REGISTERING = threading.Lock()  # two threads that register one type at the same time fail without saying why


@cache
def idl_type(kind: str) -> Any:
    """The cyclonedds class of a ROS type: sensor_msgs/msg/JointState -> sensor_msgs::msg::dds_::JointState_, @final."""
    package, _, name = kind.partition("/msg/")
    fields = {field: _field(inner) for inner, field in SCHEMAS[kind]}
    return final(make_idl_struct(name + "_", f"{package}.msg.dds_.{name}_", fields))


def _field(kind: str) -> Any:
    element, count = split_type(kind)
    inner = _PRIMITIVE[element] if element in _PRIMITIVE else idl_type(element)
    return inner if count is None else _IDL.sequence[inner] if count < 0 else _IDL.array[inner, count]


@cache
def type_hash(kind: str) -> str:
    """RIHS01 hash of a type, as ROS 2 nodes since Iron announce it."""
    from rosbags.typesys import Stores, get_typestore

    return str(get_typestore(Stores.ROS2_JAZZY).hash_rihs01(kind))


def to_idl(kind: str, message: Any) -> Any:
    """A nested dict as cyclonedds objects."""
    element, count = split_type(kind)
    if count is not None:
        return [to_idl(element, m) for m in message]
    if element not in SCHEMAS:
        return message
    return idl_type(element)(**{field: to_idl(inner, message[field]) for inner, field in SCHEMAS[element]})


def configuration(interface: str = "", peers: tuple[str, ...] = (), multicast: bool = True) -> str:
    """Cyclone DDS configuration as XML: the network interface, and peers where multicast is not to be used."""
    name = f"<Interfaces><NetworkInterface name={quoteattr(interface)}/></Interfaces>" if interface else ""
    listed = "".join(f"<Peer address={quoteattr(p)}/>" for p in peers)
    discovery = f"<Peers>{listed}</Peers>" if peers else ""
    return (
        f"<CycloneDDS><Domain><General>{name}<AllowMulticast>{'true' if multicast else 'false'}</AllowMulticast>"
        "</General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
        f"<MaxAutoParticipantIndex>{PLACES - 1}</MaxAutoParticipantIndex>{discovery}</Discovery></Domain></CycloneDDS>"
    )


def _check_peer(peer: str) -> None:
    """The library ends the process over an address it does not know. Raises ValueError."""
    host = peer if peer.count(":") != 1 else peer.partition(":")[0]
    try:
        socket.getaddrinfo(host.strip("[]"), None)
    except (OSError, UnicodeError):
        raise ValueError(f"peer {peer!r} is neither an address nor a host that is known here") from None


def open_domain(number: int, interface: str = "", peers: tuple[str, ...] = (), multicast: bool = True) -> None:
    """Open a domain with these settings, from any thread. The library holds them once per process, until it ends.

    Raises ValueError if this machine has no such interface, or this process has opened the domain with other settings;
    OSError if the library refuses.
    """
    cannot, settings = f"DDS domain {number} cannot be opened", configuration(interface, peers, multicast)
    with _OPENING:
        if number in _DOMAINS and _DOMAINS[number][0] == settings:
            return
        try:
            _DOMAINS[number] = settings, Domain(number, settings)
        except DDSException as problem:
            if problem.code == DDSException.DDS_RETCODE_PRECONDITION_NOT_MET:
                raise ValueError(
                    f"{cannot}: this process has opened it with other settings; give the same interface, peers and "
                    "multicast as before, or another domain"
                ) from None
            known = [name for _, name in socket.if_nameindex()]
            if interface and interface not in known:
                here = ", ".join(known)
                raise ValueError(
                    f"{cannot}: there is no network interface {interface!r} here; there are {here}"
                ) from None
            raise OSError(
                f"{cannot} (code {problem.code}); either the network is down, or {PLACES} programs of this machine are "
                "in it already: end those no longer needed, or give another domain (domain=, ROS_DOMAIN_ID)"
            ) from None


def domain_id(given: int | None = None) -> int:
    """`given`, else ROS_DOMAIN_ID, else 0. Raises ValueError outside 0 to 232."""
    text = os.environ.get("ROS_DOMAIN_ID", "0") if given is None else str(given)
    if not text.isdigit() or int(text) > 232:
        raise ValueError(f"the DDS domain must be a number from 0 to 232, got {text!r} (ROS_DOMAIN_ID?)")
    return int(text)


def topic_name(name: str) -> str:
    """ROS topic -> DDS topic: /joint_states -> rt/joint_states."""
    return "rt/" + name.strip("/")


@contextmanager
def _as_os_error(what: str, hint: str = "") -> Iterator[None]:
    """The library's own kind of error as the one that transports promise."""
    try:
        yield
    except DDSException as problem:
        raise OSError(f"{what} (code {problem.code}){hint}") from None


class Reader:
    """One subscription. `take` gives what came since the last call."""

    def __init__(self, entity: DataReader, kind: str, fast: bool):
        self.entity, self.kind, self.fast = entity, kind, fast

    def take(self, count: int = 8) -> list[tuple[bytes | Message, int]]:
        """(CDR bytes, or a nested dict on the public path; publisher's handle) of each new valid sample."""
        if self.fast:
            return list(dds_raw.take(self.entity, count))
        with _as_os_error("DDS could not read"):
            samples = [s for s in self.entity.take(N=count) if not isinstance(s, InvalidSample)]
        return [(from_fields(self.kind, s), s.sample_info.publication_handle) for s in samples]


class Writer:
    """One publication."""

    def __init__(self, entity: DataWriter, kind: str, fast: bool):
        self.entity, self.kind, self.fast = entity, kind, fast

    def write(self, data: bytes | Message) -> None:
        """Publish CDR bytes or a nested dict. Raises OSError if DDS refuses, e.g. because a reader does not keep up."""
        if self.fast:
            dds_raw.write(self.entity, data if isinstance(data, bytes) else encode(self.kind, data))
            return
        message = decode(self.kind, data) if isinstance(data, bytes) else data
        with _as_os_error("DDS could not write"):
            self.entity.write(to_idl(self.kind, message))

    def listeners(self) -> int:
        """How many readers are matched now."""
        return len(self.entity.get_matched_subscriptions())

    def flush(self, seconds: float) -> None:
        """Wait until readers have what was written, at most so long."""
        dds_raw.flush(self.entity, seconds)


class Node:
    """Remembers one participant and what was opened on it; `close` ends them.

    Without settings of its own it follows CYCLONEDDS_URI.
    """

    def __init__(
        self,
        domain: int | None = None,
        interface: str = "",
        peers: tuple[str, ...] = (),
        multicast: bool = True,
        codec: str = "fast",
    ):
        if codec not in CODECS:
            raise LookupError(f"there is no DDS codec {codec!r}; one of {', '.join(CODECS)}")
        self.fast = codec == "fast" and dds_raw.available
        number = domain_id(domain)
        for peer in peers:
            _check_peer(peer)
        if interface or peers or not multicast:
            open_domain(number, interface, peers, multicast)
        with _as_os_error(f"DDS domain {number} cannot be opened", "; is CYCLONEDDS_URI right, and the network up?"):
            self._participant: Any = DomainParticipant(number)
        self._entities: list[Any] = []

    def reader(self, topic: str, kind: str, depth: int = 1) -> Reader:
        """A subscription that keeps the last `depth` samples until they are taken."""
        qos = self._qos(Policy.Reliability.BestEffort, kind, depth)
        return Reader(self._keep(DataReader(self._participant, self._topic(topic, kind), qos)), kind, self.fast)

    def writer(self, topic: str, kind: str) -> Writer:
        reliable = Policy.Reliability.Reliable(duration(milliseconds=WRITE_TIMEOUT_MS))
        entity = DataWriter(self._participant, self._topic(topic, kind), self._qos(reliable, kind))
        return Writer(self._keep(entity), kind, self.fast)

    def close(self) -> None:
        """End every reader and writer, then the participant; peers are told."""
        for entity in [*reversed(self._entities), self._participant]:
            if entity is not None:
                entity.__del__()
        self._entities, self._participant = [], None

    def _topic(self, name: str, kind: str) -> Any:
        with _REGISTERING:
            return self._keep(Topic(self._participant, topic_name(name), idl_type(kind)))

    def _keep(self, entity: Any) -> Any:
        self._entities.append(entity)
        return entity

    @staticmethod
    def _qos(reliability: Any, kind: str, depth: int = 1) -> Qos:
        return Qos(
            reliability,
            Policy.History.KeepLast(depth),
            Policy.Durability.Volatile,
            Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
            Policy.Userdata(f"typehash={type_hash(kind)};".encode()),
        )
