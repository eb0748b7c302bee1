"""Names of an explicit table and what each is, read from the source: importing the members would bring torch."""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LENGTH = 150  # characters of a line


def described(module: str, table: str) -> dict[str, str]:
    """Name -> first sentence of the member's docstring, in the table's order.

    A member is a name imported or defined in the module, or a tuple or "module:class" text of where it lies. Raises
    LookupError if the module has no such table.
    """
    tree = parsed(module)
    homes = _imports(tree)
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == table:
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {str(ast.literal_eval(key)): _said(value, module, homes) for key, value in pairs if key is not None}
    raise LookupError(f"{module} has no table {table}")


@cache
def parsed(module: str) -> ast.Module:
    """The source of a module, found without importing the packages it lies in. Raises LookupError if there is none."""
    top, *below = module.split(".")
    spec = find_spec(top)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent.joinpath(*below)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    raise LookupError(f"there is no module {module}")


def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Name here -> (module, name there)."""
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in nodes for alias in node.names}


def _said(value: ast.expr, module: str, homes: dict[str, tuple[str, str]]) -> str:
    if isinstance(value, ast.Name):
        return first_sentence(*homes.get(value.id, (module, value.id)))
    if isinstance(value, ast.Tuple):
        home, name = (str(ast.literal_eval(part)) for part in value.elts[:2])
        return first_sentence(home, name)
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and ":" in value.value:
        home, name = value.value.split(":")
        return first_sentence(home, name)
    return ""


def first_sentence(module: str, name: str) -> str:
    """Of a class's or function's docstring, or else its module's, on one line of at most LENGTH characters."""
    tree = parsed(module)
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = next((node for node in tree.body if isinstance(node, kinds) and node.name == name), None)
    text = (found and ast.get_docstring(found)) or ast.get_docstring(tree) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    ends = re.search(r"(?<!al)(?<!eq)\.(?= [A-Z]|$)", paragraph)
    sentence = paragraph[: ends.start()] if ends else paragraph
    return sentence if len(sentence) <= LENGTH else textwrap.shorten(sentence, LENGTH, placeholder=" …")
