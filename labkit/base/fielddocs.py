"""Field docstrings where a person looks: Python keeps no sentence under a dataclass's field, so `help()` has none."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import TypeVar

_WIDTH = 100
Class = TypeVar("Class", bound=type)


def documented(cls: Class) -> Class:
    """Add each field of a dataclass, its default and its sentence to the docstring that `help()` and `?` show."""
    sentences = _sentences(cls)
    lines = [
        textwrap.fill(f"{_title(field)}: {sentences[field.name]}", _WIDTH, subsequent_indent="    ")
        for field in dataclasses.fields(cls)
        if field.name in sentences
    ]
    if lines:
        cls.__doc__ = f"{inspect.getdoc(cls)}\n\nFields:\n" + textwrap.indent("\n".join(lines), "    ")
    return cls


def _title(field: dataclasses.Field) -> str:
    return field.name if field.default is dataclasses.MISSING else f"{field.name} = {field.default!r}"


def _sentences(cls: type) -> dict[str, str]:
    """Return the sentence below each field, by its name; none where the source is not there."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    except (OSError, TypeError):
        return {}
    pairs = itertools.pairwise(body)
    return {
        own.target.id: " ".join(ast.literal_eval(said.value).split())
        for own, said in pairs
        if isinstance(own, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    }
