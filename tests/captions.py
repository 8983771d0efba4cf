"""What is said of each figure of a report: name, caption and alt text beside its plot function, read off the source."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from labkit.base import paths


@dataclass(frozen=True)
class Caption:
    """What `captioned` is given."""

    name: str
    caption: str
    alt: str


def captions(report: str) -> dict[str, Caption]:
    """Return what is said of a figure by the plot function that draws it."""
    found: dict[str, Caption] = {}
    for path in (paths.root() / "labkit" / "reports" / report).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "captioned":
                    said = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
                    found[node.name] = Caption(ast.literal_eval(call.args[0]), **said)
    return found


def drawn_in(module: ast.Module, report: str) -> list[str]:
    """Name the plot functions of a report whose figures its notebook shows, in their order; tables are shown, too."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call) and ast.unparse(node.func) == "show"]
    made = [call.args[0] for call in calls if isinstance(call.args[0], ast.Call)]
    names = [ast.unparse(call.func).rpartition(".")[2] for call in made]
    return [name for name in names if name in captions(report)]
