"""What a person may say to a running policy, as one line of text: from a topic, a keyboard or a test."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from robot_cl.deploy.names import near

MAX_TEXT = 1000
# verb -> whether it may come over the network without `remote_start`: everything that makes the robot safer may.
VERBS = {
    "stop": True, "hold": True, "skills": True, "goal": True, "policy": True, "start": False, "enable": False,
    "reset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """One instruction: a verb, for skills and goal the named numbers, for policy a name."""

    verb: str
    values: dict[str, float] = field(default_factory=dict)
    name: str = ""


def parse_order(text: str) -> Order:
    """"stop", "hold", "start", "enable", "reset", "skills NAME=0.5 ...", "goal NAME=1.2 ...", "policy NAME".

    Raises ValueError or LookupError with one sentence for anything else.
    """
    words = text[:MAX_TEXT].split()
    if not words or len(text) > MAX_TEXT:
        raise ValueError(f"an order has between 1 and {MAX_TEXT} characters, got {len(text)}")
    verb, values = words[0].lower(), {}
    if verb not in VERBS:
        raise LookupError(f"there is no order {verb[:40]!r}, {near(verb[:40], VERBS)}")
    if verb == "policy":
        if len(words) != 2:
            raise ValueError("policy takes the name of a bundle that was loaded with the run")
        return Order(verb, name=words[1])
    for word in words[1:]:
        name, _, number = word.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise ValueError(f"{verb} expects NAME=NUMBER, got {word[:40]!r}") from None
        if not name or not math.isfinite(values[name]):
            raise ValueError(f"{verb} expects NAME=NUMBER with a finite number, got {word[:40]!r}")
    if (verb in ("skills", "goal")) != bool(values):
        raise ValueError(f"{verb} takes {'at least one NAME=NUMBER' if verb in ('skills', 'goal') else 'no values'}")
    return Order(verb, values)


class Orders:
    """What was ordered and waits for the next tick, and whether a stop is in force. Any thread may give orders; over
    the network only those that make the robot safer count, unless `remote_start`."""

    def __init__(self, remote_start: bool):
        self.remote_start, self.stopped = remote_start, threading.Event()
        self._waiting: deque[Order] = deque()

    def give(self, order: Order) -> None:
        """A stop takes back what was ordered before it: a reset that still waits would clear the stop."""
        if order.verb == "stop":
            self._waiting.clear()
            self.stopped.set()
        else:
            self._waiting.append(order)

    def hear(self, texts: Iterable[str]) -> int:
        """Orders from the network; how many of them are none."""
        wrong = 0
        for text in texts:
            try:
                heard = parse_order(text)
            except (ValueError, LookupError):
                wrong += 1
                continue
            if VERBS[heard.verb] or self.remote_start:
                self.give(heard)
        return wrong

    def next(self) -> Order | None:
        """The oldest that waits. A stop from another thread may take all of them back at any moment."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None
