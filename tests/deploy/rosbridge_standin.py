"""A stand-in for rosbridge_server, written from the rosbridge 2.0 protocol and RFC 6455: subscribe, publish, advertise
and status over a web socket, with the three ways in which a real one leaves its clients in the dark.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class StandIn:
    """Listens on 127.0.0.1. Remembers clients, their subscriptions and what they published.

    `silent` keeps every connection open and says nothing more, as a killed server may. `late` topics have a best-effort
    publisher that appears with `appear`: a subscription made before hears nothing for ever. `ros` 1 refuses three-part
    type names with a status operation.
    """

    def __init__(self, ros: int = 2, port: int = 0):
        self.ros, self.silent = ros, False
        self.late: set[str] = set()
        self.published: dict[str, deque[Any]] = {}
        self.requests: list[dict] = []
        self._clients: list[Client] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def publish(self, topic: str, message: dict) -> None:
        """As a node on the robot would."""
        text = json.dumps({"op": "publish", "topic": topic, "msg": message})
        self.send_text(text, topic)

    def send_text(self, text: str | bytes, topic: str | None = None) -> None:
        """Any frame to every client, or to those that hear `topic`."""
        if not self.silent:
            for client in list(self._clients):
                if topic is None or client.hears(topic):
                    client.send(text)

    def appear(self, topic: str) -> None:
        """The publisher of a late topic starts."""
        self.late.discard(topic)

    def hears(self, topic: str) -> bool:
        return any(c.hears(topic) for c in self._clients)

    def drop_clients(self) -> None:
        for client in list(self._clients):
            client.close()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop_clients()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = Client(self, connection)
                self._clients.append(client)
                threading.Thread(target=client.serve, daemon=True).start()

    def forget(self, client: Client) -> None:
        with suppress(ValueError):
            self._clients.remove(client)

    def handle(self, client: Client, request: dict) -> None:
        self.requests.append(request)
        operation, topic = request.get("op"), str(request.get("topic"))
        kind = request.get("type")
        if kind and self.ros == 1 and str(kind).count("/") != 1:
            client.status(f"Unable to import {kind}: a type has two parts")
        elif operation == "subscribe":
            client.subscriptions[topic] = topic not in self.late
        elif operation == "unsubscribe":
            client.subscriptions.pop(topic, None)
        elif operation == "publish":
            if topic not in client.advertised:
                client.status(f"Cannot publish to {topic}, it was not advertised")
            self.published.setdefault(topic, deque(maxlen=64)).append(request.get("msg"))
        elif operation == "advertise":
            client.advertised.add(topic)
        elif operation not in ("unadvertise", "set_level"):
            client.status(f"Unknown operation: {operation}")


class Client:
    """One web socket, server side."""

    def __init__(self, server: StandIn, connection: socket.socket):
        self.server, self.connection = server, connection
        self.subscriptions: dict[str, bool] = {}
        self.advertised: set[str] = set()
        self._lock = threading.Lock()
        self._open = False

    def hears(self, topic: str) -> bool:
        return self._open and self.subscriptions.get(topic, False)

    def status(self, text: str) -> None:
        self.send(json.dumps({"op": "status", "level": "error", "msg": text}))

    def send(self, text: str | bytes) -> None:
        payload = text.encode() if isinstance(text, str) else text
        size = len(payload)
        head = bytes([0x80 | TEXT]) + (
            bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size) if size < 65536
            else b"\x7f" + struct.pack(">Q", size)
        )  # fmt: skip
        with self._lock, suppress(OSError):
            self.connection.sendall(head + payload)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            self._handshake()
            self._open = True
            while True:
                kind, payload = self._frame()
                if kind == CLOSE:
                    break
                if kind == PING:
                    with self._lock:
                        self.connection.sendall(bytes([0x80 | PONG, len(payload)]) + payload)
                if kind == TEXT and not self.server.silent:
                    self.server.handle(self, json.loads(payload))
        self._open = False
        self.server.forget(self)
        self.close()

    def _handshake(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += self._exactly(1)
        lines = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:] if b": " in line)
        key = {k.lower(): v for k, v in lines.items()}[b"sec-websocket-key"]
        accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
        self.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        size = second & 0x7F
        if size == 126:
            size = struct.unpack(">H", self._exactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._exactly(8))[0]
        mask = self._exactly(4) if second & 0x80 else b"\0\0\0\0"
        payload = self._exactly(size)
        return first & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


class StandInNode:
    """The robot's side of a stand-in, for `SimulatedRobot`."""

    def __init__(self, server: StandIn):
        self.server = server

    def reader(self, topic: str, kind: str) -> Any:
        box = self.server.published.setdefault(topic, deque(maxlen=64))

        class Reader:
            def take(self) -> list[tuple[Any, int]]:
                found = []
                while box:
                    found.append((box.popleft(), 0))
                return found

        return Reader()

    def writer(self, topic: str, kind: str) -> Any:
        server = self.server

        class Writer:
            def write(self, message: dict) -> None:
                server.publish(topic, message)

        return Writer()

    def close(self) -> None:
        pass


def nonsense(rng: np.random.Generator, topic: str, message: dict) -> str | bytes:
    """A frame that is wrong in one of many ways, made of a good JointState `message` (which it may change)."""
    frame: Any = {"op": "publish", "topic": topic, "msg": message}
    choice = rng.integers(0, 10)
    values = [None, "x", [], {}, 1e400, -1, True, [[1]], "NaN", 10**40]
    odd = values[rng.integers(0, len(values))]
    if choice == 0:
        return bytes(rng.integers(0, 128, int(rng.integers(0, 60)), dtype=np.uint8))
    if choice == 1:
        text = json.dumps(frame)
        return text[: int(rng.integers(0, len(text)))]
    if choice == 2:
        return json.dumps(odd)
    if choice == 3:
        frame[str(rng.choice(["op", "topic", "msg"]))] = odd
    elif choice == 4:
        message[str(rng.choice(["name", "position", "velocity", "header"]))] = odd
    elif choice == 5:
        message["position"][0] = odd
    elif choice == 6:
        message["header"]["stamp"] = odd
    elif choice == 7:
        message["name"] = [message["name"][0], odd]
    elif choice == 8:
        del message[str(rng.choice(list(message)))]
    else:
        frame = {"op": "publish", "topic": "/robot_cl/operator", "msg": {"data": odd}}
    return json.dumps(frame)
