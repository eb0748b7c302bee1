"""What the pages show can be typed: their verbs and options exist. (test_skills_doc.py runs a whole page.)"""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from robot_cl.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "results.md")]
SHOWN = re.compile(r"`(robot-cl [^`\n]+)`|^(robot-cl .+)$", re.MULTILINE)


def verbs_of(line: str) -> list[tuple[str, list[str]]]:
    """Verb and words of each command of a line; `skills add NAME | list` shows several, the later ones shortened."""
    found, group = list[tuple[str, list[str]]](), ""
    for part in re.split(r"\s\|\s", line.split("  #")[0].removeprefix("robot-cl ")):
        words = part.split()
        names = [f"{group} {words[0]}", " ".join(words[:2]), words[0]]
        name = next((name for name in names if name in VERBS), None)
        if name is None and len(words) == 1 and any(verb.startswith(f"{words[0]} ") for verb in VERBS):
            continue  # a group, such as skills
        assert name is not None, f"no verb {words[0]!r} in {line}"
        group = name.split()[0]
        found.append((name, words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_and_option_on_a_page_exists(page: Path) -> None:
    for line in (a or b for a, b in SHOWN.findall(page.read_text().replace("\\|", "|"))):
        for name, words in verbs_of(line):
            module, attribute, _ = VERBS[name]
            verb = getattr(importlib.import_module(f"robot_cl.commands.{module}"), attribute)
            options = verb.options() if verb.options is not None else None
            if options is None or verb.free or not is_dataclass(options):
                continue
            keys = {word.split("=")[0].split(".")[0] for word in words if re.match(r"[a-z_.]+=", word)}
            assert keys <= {field.name for field in fields(options)}, f"{line}: {keys}"
