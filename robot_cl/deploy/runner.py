"""The control loop on the robot: a small state machine around a policy that may only drive while all is well.

DISABLED --enable--> HOLD --start--> RAMP --> ACTIVE; any doubt leads to HOLD, lasting doubt to DAMP, a stop to ESTOP.
Nothing but an operator leads back up. SHADOW computes and logs commands and sends none.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from policies.policy import Policy
from robot_cl.deploy.actuation import Actuation
from robot_cl.deploy.caller import Caller, InlineCaller
from robot_cl.deploy.clock import Clock
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.hearing import Hearing
from robot_cl.deploy.latency import Statistics
from robot_cl.deploy.mind import Mind, Thought
from robot_cl.deploy.modes import DRIVING, SENDING, THINKING, Guard, Listener, Mode, RunnerConfig, Stage, Step
from robot_cl.deploy.names import near
from robot_cl.deploy.observe import compare
from robot_cl.deploy.operator import Order, Orders, parse_order
from robot_cl.deploy.safety import blend
from robot_cl.deploy.transport import State, Transport

Whole = tuple[Policy, Contract, Guard | None, Stage | None]  # what makes one bundle
ENABLED = "enabled"
LAST_WORDS = 3  # attempts at the stop command of a run that ends
HISTORY = 1000  # changes of mode that are kept


class Runner:
    """Drives one robot with one policy. Remembers mode, reason and times; `history` lists the changes of mode as
    (time, mode, reason).

    Everything runs in the thread that calls `tick` (or `run`); `order`, `swap`, `estop` and `finish` may be called from
    any. Raises LookupError or ValueError at once if the policy's contract and the robot do not fit.
    """

    def __init__(
        self,
        policy: Policy,
        contract: Contract,
        transport: Transport,
        clock: Clock,
        config: RunnerConfig | None = None,
        caller: Caller | None = None,
        listeners: tuple[Listener, ...] = (),
        guard: Guard | None = None,
        stage: Stage | None = None,
    ):
        self.contract, self.transport, self.clock = contract, transport, clock
        self.config, self.listeners = config or RunnerConfig(), listeners
        self.dt = transport.spec.control_dt
        refusals = [f.text for f in compare(contract, transport.spec) if f.blocks]
        if refusals:
            raise ValueError("; ".join(refusals))
        self.stats = Statistics()
        asking = caller or InlineCaller(policy, clock)
        self.mind = Mind(contract, transport.spec, asking, clock, self.config, self.stats, guard, stage)
        self.actuation = Actuation(contract, transport.spec, self.config.max_speed)
        needed = self.mind.builder.signals | self.actuation.needed
        self.hearing = Hearing(transport, clock, needed, self.config.stale_s or min(3 * self.dt, 0.1))
        self.mode, self.reason, self.since = Mode.DISABLED, "not enabled yet", clock.now()
        self.history: deque[tuple[float, Mode, str]] = deque(maxlen=HISTORY)
        self.refusal, self._untold = "", list[str]()
        self.orders, self._finish = Orders(self.config.remote_start), threading.Event()
        self.offered: dict[str, Whole] = {}
        self._next: deque[Whole] = deque(maxlen=1)
        self._values = np.full(len(transport.spec.signals), np.nan)
        self._blend_from: np.ndarray | None = None
        self._blend_at = 0.0

    def enable(self) -> None:
        """DISABLED or DAMP -> HOLD. Raises ValueError: no fresh, finite state, a joint outside its box, not armed."""
        if not self.config.armed:
            raise ValueError("this run only watches; end it and run with armed=true to drive the robot")
        if self.mode not in (Mode.DISABLED, Mode.DAMP):
            raise ValueError(f"enable needs a disabled or damped robot, this one is in {self.mode}")
        state = self.hearing.fresh()
        if self.mode is Mode.DISABLED:
            self.actuation.start(state.values)
        self._values = state.values
        self._enter(Mode.HOLD, ENABLED)

    def start(self) -> None:
        """HOLD -> RAMP -> ACTIVE. Raises ValueError without a fresh, finite state."""
        if self.mode is not Mode.HOLD:
            raise ValueError(f"start needs a robot in hold, this one is in {self.mode}")
        self.hearing.source = self.hearing.fresh().source
        self._begin()
        self._enter(Mode.RAMP, "started")

    def shadow(self) -> None:
        """DISABLED -> SHADOW: everything is computed and logged, nothing is sent."""
        if self.mode is not Mode.DISABLED:
            raise ValueError(f"shadow needs a disabled robot, this one is in {self.mode}")
        state = self.hearing.fresh()
        self.actuation.start(state.values)
        self.hearing.source = state.source
        self._begin()
        self._enter(Mode.SHADOW, "shadowing")

    def estop(self) -> None:
        """Stop at the next tick, whatever else happens. From any thread."""
        self.orders.stopped.set()

    def reset(self) -> None:
        """Any mode that is not driving -> DISABLED: nothing more is sent, so the last word is the stop command.

        Raises ValueError while driving, or if the stop command cannot be sent.
        """
        if self.mode in DRIVING:
            raise ValueError(f"reset needs a robot that is not driving, this one is in {self.mode}")
        if self.mode in SENDING and not self._sent(self.actuation.stop(self._values)):
            raise ValueError(f"the stop command could not be sent ({self.refusal}), so {self.mode} goes on")
        self.orders.stopped.clear()
        self._enter(Mode.DISABLED, "reset by the operator")

    def order(self, text: str) -> None:
        """One line from a person at this machine, for the next tick. Raises ValueError or LookupError if malformed."""
        self.orders.give(parse_order(text))

    def offer(
        self, name: str, policy: Policy, contract: Contract, guard: Guard | None = None, stage: Stage | None = None
    ) -> None:
        """Have another policy ready for the order "policy NAME". Raises ValueError for another interface."""
        self._check_interface(contract)
        self.offered[name] = policy, contract, guard, stage

    def swap(
        self, policy: Policy, contract: Contract, guard: Guard | None = None, stage: Stage | None = None
    ) -> None:
        """Drive with another policy of the same interface from the next tick on; the command stays continuous.

        From any thread, with a policy that is loaded already. Raises ValueError for another interface.
        """
        self._check_interface(contract)
        self._next.append((policy, contract, guard, stage))

    def _check_interface(self, contract: Contract) -> None:
        mine, theirs = ([(t.history, t.scale, t.clip) for t in c.observation] for c in (self.contract, contract))
        difference = self.contract.interface.difference(contract.interface)
        if difference or mine != theirs:
            what = difference or "observations of other history, scale or clip"
            raise ValueError(f"the new policy has another interface: {what}")

    def finish(self) -> None:
        """End `run` after the present tick, with a stop command. From any thread or signal handler."""
        self._finish.set()

    def run(self, duration: float = np.inf) -> None:
        """Tick every control period until `duration` seconds passed or `finish`; always ends with a stop command."""
        due = began = self.clock.now()
        end, ticks = due + duration - 1e-9, 0
        try:
            while due < end and not self._finish.is_set():
                self.stats.add("late", self.clock.now() - due)
                self.tick()
                ticks += 1
                due = began + ticks * self.dt
                behind = self.clock.now() - due
                if behind > self.dt:  # a whole period lost: skip it rather than hurry through stale deadlines
                    lost = int(behind // self.dt)
                    self.stats.events["missed"] += lost
                    ticks += lost
                    due += lost * self.dt
                self.wait(due)
        finally:
            self.close()

    def wait(self, due: float) -> None:
        """Sleep until `due`, awake for the moment in between at which the last state becomes too old."""
        while (alarm := self._alarm()) < due - 1e-9:
            self.clock.sleep_until(alarm)
            self._watch()
        self.clock.sleep_until(due)

    def close(self) -> None:
        """Send the stop command if anything was being sent, say so, and let go of the policy thread."""
        stop = None
        if self.mode in SENDING and self.actuation.previous is not None:
            self._enter(Mode.ESTOP, "finished")
            stop = self.actuation.stop(self._values)
            for _ in range(LAST_WORDS):
                if self._sent(stop):
                    break
        self.mind.caller.close()
        if stop is not None:
            self._tell(self.since, Thought(), stop)

    def _sent(self, command: np.ndarray) -> bool:
        """Whether the transport took the command; a refusal is counted."""
        try:
            self.transport.write(command)
        except OSError as problem:
            self.stats.events["unsent"] += 1
            self.refusal = str(problem)
            return False
        return True

    def tick(self) -> None:
        """One control step: orders, state, policy, judgement, command."""
        began = self.clock.now()
        self._obey()
        state = self.transport.read()
        thought = Thought()
        if self._usable_state(state, began) and self.mode in THINKING and not self.orders.stopped.is_set():
            thought = self.mind.think(self._values, began, self.mode)
            if thought.doubt:
                self._doubt(thought.doubt, began, thought.lasting)
            self._look_again()
        if self.orders.stopped.is_set() and self.mode not in (Mode.ESTOP, Mode.DISABLED):
            self._enter(Mode.DISABLED if self.mode is Mode.SHADOW else Mode.ESTOP, "stop ordered")
        self._send(began, thought)
        self.stats.add("tick", self.clock.now() - began)

    def _send(self, began: float, thought: Thought) -> None:
        """The command of the present mode to the robot, if it sends one."""
        command = self._command(thought.action)
        if command is not None and self.mode in SENDING and not self._sent(command):
            self._doubt("a command could not be sent", began)
        self._tell(began, thought, command)

    def _tell(self, began: float, thought: Thought, command: np.ndarray | None) -> None:
        """What was seen, thought and sent, to the listeners."""
        refusals, self._untold = self._untold, []
        age = self.transport.age()
        if np.isfinite(age):
            self.stats.add("age", age)
        taken = None if command is None else self.actuation.to_action(command)
        if taken is not None and self.mode in THINKING:
            self.mind.note(taken)
        step = Step(
            began, self.mode, self.reason, self._values, thought.obs, thought.action, command, taken, age,
            np.array(list(self.mind.builder.goals.values())), self.mind.weights, self.mind.skills,
            "; ".join(refusals),
        )  # fmt: skip
        for listener in self.listeners:
            listener.step(step)

    def _obey(self) -> None:
        """Carry out orders, from the network only those allowed; a wrong one is counted and changes nothing."""
        if self._next:
            self.mind.adopt(*self._next.popleft())
            self._blend_from, self._blend_at = self.actuation.previous, self.clock.now()
        if wrong := self.orders.hear(self.transport.messages()):
            self.stats.events["bad_order"] += wrong
        while (order := self.orders.next()) is not None:
            try:
                self._carry_out(order)
            except (ValueError, LookupError) as problem:
                self.stats.events["refused_order"] += 1
                self.refusal = str(problem)
                self._untold.append(self.refusal)

    def _carry_out(self, order: Order) -> None:
        if order.verb == "skills":
            self.mind.want(order.values)
        elif order.verb == "policy":
            if order.name not in self.offered:
                raise LookupError(f"no policy {order.name!r} was loaded, {near(order.name, self.offered)}")
            self.swap(*self.offered[order.name])
        elif order.verb == "goal":
            self.mind.builder.set_goals(order.values)
        elif order.verb == "hold":
            if self.mode in DRIVING:
                self._enter(Mode.HOLD, "hold ordered")
        else:
            {"enable": self.enable, "start": self.start, "reset": self.reset}[order.verb]()

    def _usable_state(self, state: State | None, now: float) -> bool:
        """Whether the state can be driven on; if not, the doubt acts."""
        if state is not None:
            self._values = state.values
        wrong = self.hearing.complaint(state, now, self.mode in DRIVING)
        if wrong:
            self._doubt(wrong, now)
        return not wrong

    def _alarm(self) -> float:
        """When to hold, or to damp, if no usable state comes before."""
        if self.mode in DRIVING:
            return self.hearing.usable + self.hearing.stale_s
        return self.hearing.usable + self.config.damp_s if self.mode is Mode.HOLD else np.inf

    def _watch(self) -> None:
        """Between ticks: if still nothing usable came, hold (or damp) now and say so to the robot."""
        now, before = self.clock.now(), self.mode
        if self.hearing.again():
            return
        self._doubt(self.hearing.silence(now), now)
        if self.mode is before:  # cannot happen while alarms and doubts agree; never spin on it
            self._enter(Mode.DAMP, "the watch found no way to hold")
        self._send(now, Thought())

    def _look_again(self) -> None:
        """While the policy was thinking, the state may have grown too old to be driven on."""
        now = self.clock.now()
        if self.mode in DRIVING and now >= self._alarm() - 1e-9 and not self.hearing.again():
            self._doubt(self.hearing.silence(now), now)

    def _doubt(self, why: str, now: float, lasting: bool = False) -> None:
        """HOLD if driving; DAMP where nothing usable was heard for long. In shadow only counted."""
        self.stats.events[why.split(" (")[0].split(" for ")[0]] += 1
        lasting = lasting or now >= self.hearing.usable + self.config.damp_s - 1e-9
        if lasting and self.mode in DRIVING | {Mode.HOLD}:
            self._enter(Mode.DAMP, why)
        elif self.mode in DRIVING:
            self._enter(Mode.HOLD, why)

    def _command(self, action: np.ndarray | None) -> np.ndarray | None:
        """What this mode sends, inside the box; None where it sends nothing."""
        if self.mode is Mode.DISABLED:
            return None
        if self.mode is Mode.ESTOP:
            return self.actuation.stop(self._values)
        if self.mode in DRIVING | {Mode.SHADOW}:
            if action is None:
                return None if self.mode is Mode.SHADOW else self.actuation.limit(self._fallback("hold"), self._values)
            return self.actuation.limit(self._driven(action), self._values)
        return self.actuation.limit(self._fallback("damp" if self.mode is Mode.DAMP else "hold"), self._values)

    def _driven(self, action: np.ndarray) -> np.ndarray:
        """The policy's command, faded in after a start or a swap."""
        command, now = self.actuation.from_action(action), self.clock.now()
        if self._blend_from is not None:
            share = (now - self._blend_at) / self.config.swap_s if self.config.swap_s else 1.0
            command = blend(self._blend_from, command, share)
            self._blend_from = None if share >= 1 else self._blend_from
        if self.mode is Mode.RAMP:
            share = (now - self.since) / self.config.ramp_s if self.config.ramp_s else 1.0
            command = blend(self._fallback("hold"), command, share)
            if share >= 1:
                self._enter(Mode.ACTIVE, "ramped in")
        return command

    def _fallback(self, kind: str) -> np.ndarray:
        return self.actuation.fallback(kind, self._values)

    def _begin(self) -> None:
        """An episode begins."""
        self.mind.forget()
        self._blend_from, self._blend_at, self.refusal = None, 0.0, ""

    def _enter(self, mode: Mode, reason: str) -> None:
        self.mode, self.reason, self.since = mode, reason, self.clock.now()
        self.history.append((self.since, mode, reason))
        self.actuation.enter(self._values)
