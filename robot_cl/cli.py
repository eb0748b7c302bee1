"""`robot-cl VERB [WORD ...] [key=value ...]`: finds the verb, prints its help, and turns mistakes into one sentence.

Nothing heavy is imported here: a verb's module is imported when the verb is used.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robot_cl.commands.verb import Call, Outcome, Verb

# verb -> (module, name in it, one line)
VERBS: dict[str, tuple[str, str, str]] = {
    "doctor": ("doctor", "DOCTOR", "what is installed here, and the fix where something is missing"),
    "list": ("list", "LIST", "tasks, datasets, behaviours, learners: what can be named where"),
    "demo": ("demo", "DEMO", "dataset, offline policy, online policy, film and report, within minutes"),
    "data list": ("data", "LIST", "the datasets on this machine"),
    "data collect": ("data", "COLLECT", "record a dataset with one or several policies"),
    "data import": ("data", "IMPORT", "take in D4RL, npz, Minari, LeRobot, or a robot's recordings"),
    "data export": ("data_export", "EXPORT", "write a dataset as a LeRobot folder"),
    "data check": ("data", "CHECK", "findings about a dataset, and which learner fits it"),
    "train": ("train", "TRAIN", "train a policy offline, online, or first one and then the other"),
    "resume": ("train", "RESUME", "continue a run where it stopped, bit for bit"),
    "verify": ("train", "VERIFY", "run the first steps of a run again and compare"),
    "evaluate": ("evaluate", "EVALUATE", "returns of a policy with intervals, and a film"),
    "adapt": ("adapt", "ADAPT", "a flow that keeps a policy or a robot going when the robot changes"),
    "report": ("report", "REPORT", "one self-contained page about a run"),
    "serve": ("serve", "SERVE", "runs, skills and reports in a browser, live, on this machine alone"),
    "mismatch": ("mismatch", "MISMATCH", "which error of a dynamics model tells what it is worth to a planner"),
    "compare": ("compare", "COMPARE", "two or more runs side by side, with intervals"),
    "transfer": ("transfer", "TRANSFER", "what skills are worth for a new task: eight rows, four interventions"),
    "continual": ("continual", "CONTINUAL", "task after task: what each method keeps, and what it carries over"),
    "gate": ("gate", "GATE", "may a new policy or skill take the place of the old one?"),
    "skills add": ("skills", "ADD", "keep what a run has learned, in the library of its base"),
    "skills train": ("sweeps", "SKILLS_TRAIN", "a skill for every task of a stream, side by side"),
    "skills list": ("skills", "LIST", "the skills on this machine, by base"),
    "skills show": ("skills", "SHOW", "a skill's card, verified, and what is near it"),
    "skills search": ("skills", "SEARCH", "skills by words, or by what they do"),
    "skills check": ("skills", "CHECK", "verify every digest; what cannot be trusted is named"),
    "skills rebase": ("skills_move", "REBASE", "move skills to a new base"),
    "skills export": ("skills_move", "EXPORT", "a skill as an adapter of peft"),
    "skills import": ("skills_move", "IMPORT", "an adapter of peft, or a skill file, into a library"),
    "skills remove": ("skills", "REMOVE", "take a skill out; rollback brings it back"),
    "skills rollback": ("skills", "ROLLBACK", "bring back the version before"),
    "skills log": ("skills", "LOG", "the journal of the library"),
    "compose": ("compose", "COMPOSE", "skills, or a new one on top of them, for a new task from a few demonstrations"),
    "merge": ("merge", "MERGE", "several skills as one"),
    "export": ("export", "EXPORT", "a policy as a bundle that a robot runs without torch"),
    "deploy rehearse": ("deploy", "REHEARSE", "drive a simulated robot through faults; leaves the receipt that arms"),
    "deploy check": ("deploy", "CHECK", "does the bundle fit the robot, name by name"),
    "deploy guard": ("deploy", "GUARD", "calibrate what holds the robot when it meets the unknown"),
    "deploy simulate": ("deploy_run", "SIMULATE", "a simulated robot that talks like the real one"),
    "deploy run": ("deploy_run", "RUN", "watch, or drive, a robot"),
    "deploy say": ("deploy_run", "SAY", "stop, hold, weigh skills anew, set goals of a running policy"),
}
FLAGS = {"-h": "help", "--help": "help", "--json": "json", "-q": "quiet", "--quiet": "quiet", "--version": "version"}
OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w./@-]*=")
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_SAID = re.compile(r"No space left on device|quota exceeded|^\d+ requested and \d+ written$")
USER_MISTAKES = (ValueError, LookupError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 not so, 2 a mistake, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of few letters gets a ? for a tick, not an error
    try:
        return _run(words)
    except BrokenPipeError:  # the reader of a pipe has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as problem:
        if os.environ.get("ROBOT_CL_DEBUG"):
            traceback.print_exc()
        return _complain(problem)


def _run(words: list[str]) -> int:
    flags, words = _take_flags(words)
    if "version" in flags:
        from importlib.metadata import version

        print(f"robot-cl {version('robot-cl')}")
        return 0
    name, rest = _find_verb(words)
    if name not in VERBS:
        print(_overview(name))
        return 0 if "help" in flags or not name else 2
    verb = _load(name)
    if "help" in flags:
        print(_page(name, verb, rest))
        return 0
    return _call(name, verb, rest, flags)


def _call(name: str, verb: Verb, rest: list[str], flags: set[str]) -> int:
    from robot_cl.commands.verb import Call, to_json

    call = Call(*_split(name, verb, rest), as_json="json" in flags, quiet="quiet" in flags)
    try:
        outcome = verb.run(call, _options(name, verb, call))
    except KeyboardInterrupt:
        print(f"stopped; {call.resume or 'nothing was left half-written'}", file=sys.stderr)
        return 130
    except Exception as problem:
        if call.resume and _is_full(problem):
            problem.add_note(call.resume)
        raise
    if call.as_json:
        wrote = str(outcome.wrote) if outcome.wrote else None
        print(to_json({**outcome.data, "wrote": wrote, "next": outcome.next}))
    else:
        _last_line(call, outcome)
    return outcome.code


def _options(name: str, verb: Verb, call: Call) -> object:
    if verb.options is None or verb.free:
        if call.overrides and not verb.free:
            raise ValueError(f"robot-cl {name} takes no options, got {call.overrides[0]!r}")
        return None
    from robot_cl.config import read_options

    return read_options(verb.options(), call.overrides)


def _last_line(call: Call, outcome: Outcome) -> None:
    wrote = f"wrote {_short(outcome.wrote)}" if outcome.wrote else ""
    after = f"next: robot-cl {outcome.next}" if outcome.next else ""
    line = "  ·  ".join(part for part in (wrote, after) if part)
    if line:
        call.say(line)


def _short(path: object) -> str:
    """A path below the working directory as one would type it."""
    text = os.path.relpath(str(path))
    return str(path) if text.startswith("..") else text


def _take_flags(words: list[str]) -> tuple[set[str], list[str]]:
    """Flags apart from words; `--name value` and `--name=value` are other spellings of name=value."""
    flags, left, queue = set(), [], list(words)
    while queue:
        word = queue.pop(0)
        if word in FLAGS:
            flags.add(FLAGS[word])
        elif word.startswith("--") and len(word) > 2:
            key = word[2:].replace("-", "_")
            if "=" in key:
                left.append(word[2:])
            elif queue and not queue[0].startswith("--"):
                left.append(f"{key}={queue.pop(0)}")
            else:
                raise ValueError(f"{word} needs a value: write {key}=VALUE")
        else:
            left.append(word)
    return flags, left


def _find_verb(words: list[str]) -> tuple[str, list[str]]:
    """The longest verb at the front and what follows it; a bare group such as `data` is returned as it is."""
    if not words:
        return "", []
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, words[length:]
    groups = {verb.split()[0] for verb in VERBS if " " in verb}
    if words[0] in groups and len(words) == 1:
        return words[0], []
    from robot_cl.data.naming import not_found

    if words[0] in groups:
        known = [verb.split()[1] for verb in VERBS if verb.startswith(words[0] + " ")]
        raise not_found(f"verb {words[0]!r}", words[1], known)
    raise not_found("verb", words[0], {verb.split()[0] for verb in VERBS})


def _load(name: str) -> Verb:
    module, attribute, _ = VERBS[name]
    return getattr(importlib.import_module(f"robot_cl.commands.{module}"), attribute)


def _split(name: str, verb: Verb, rest: list[str]) -> tuple[list[str], list[str]]:
    """Plain words and key=value words. Raises ValueError if the verb takes fewer or more plain words."""
    words = [word for word in rest if not OVERRIDE.match(word)]
    fewest, most = verb.words
    if "=" in rest:
        raise ValueError(f"robot-cl {name}: options are written key=value, without blanks around =")
    if not fewest <= len(words) <= most:
        problem = f"does not know what to do with {words[most]!r}" if len(words) > most else "needs more words"
        raise ValueError(f"robot-cl {name} {problem}; usage: robot-cl {name} {verb.usage}".rstrip())
    return words, [word for word in rest if OVERRIDE.match(word)]


def _overview(group: str = "") -> str:
    """The page of `robot-cl --help`, or of one group of verbs."""
    names = [name for name in VERBS if not group or name.startswith(group + " ")]
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {VERBS[name][2]}" for name in names]
    start = "robot-cl: continual control for robots, from data to policy to robot\n\n" if not group else ""
    example = "  robot-cl demo\n  robot-cl train learner=iql data=halfcheetah/mixed-v0 task=halfcheetah seeds=3\n"
    end = f"\nexamples:\n{example}" if not group else ""
    usage = f"usage: robot-cl {group + ' ' if group else ''}VERB [key=value ...] [--json] [--quiet] [--help]\n\n"
    return f"{start}{usage}" + "\n".join(lines) + f"\n{end}\nrobot-cl VERB --help shows a verb's options and examples."


def _page(name: str, verb: Verb, rest: list[str]) -> str:
    """The page of `robot-cl VERB --help`."""
    from robot_cl.commands.helptext import option_lines

    parts = [f"usage: robot-cl {name} {verb.usage}".rstrip(), verb.about.strip()]
    if verb.options is not None:
        parts.append("options:\n" + option_lines(verb.options()))
    if verb.more_help is not None:
        parts.append(verb.more_help(rest))
    parts.append("examples:\n" + "\n".join(f"  {example}" for example in verb.examples))
    parts.append("--json prints one JSON object for scripts, --quiet prints only mistakes.")
    return "\n\n".join(parts)


def _complain(problem: Exception) -> int:
    """One sentence on standard error. A bare KeyError or IndexError is a bug of ours, not a mistake of the user's."""
    mistake = isinstance(problem, USER_MISTAKES) and type(problem) not in (KeyError, IndexError)
    text = " ".join(str(problem).split()) or type(problem).__name__
    if _is_full(problem):
        then = "; ".join(getattr(problem, "__notes__", ["run it again"]))
        print(f"robot-cl: the disk is full ({text}); free some space, then {then}", file=sys.stderr)
        return 2
    if isinstance(problem, OSError) and problem.strerror and problem.filename:
        advice = "; choose another folder" if problem.errno in NOT_WRITABLE else ""
        text = f"{problem.filename}: {problem.strerror.lower()}{advice}"
    if mistake:
        print(f"robot-cl: {text}", file=sys.stderr)
        return 2
    kind = type(problem).__name__
    print(f"robot-cl: unexpected {kind}: {text} (ROBOT_CL_DEBUG=1 shows where)", file=sys.stderr)
    return 1


def _is_full(problem: Exception) -> bool:
    """Whether there was no room: NumPy, HDF5 and safetensors each say it in words of their own."""
    return getattr(problem, "errno", None) in FULL or bool(FULL_SAID.search(str(problem)))


if __name__ == "__main__":
    sys.exit(main())
