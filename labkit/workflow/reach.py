"""Which of labkit's definitions a function reaches, read off the syntax tree, and a hash of them that means behaviour.

A definition is a function, a class or a name set at the top of a module. From a cell function the names that its body
uses are followed into the modules they come from, and so on. Docstrings, comments, annotations and formatting are not
in the hash, neither are the names of modules: a moved module changes nothing.

What is not seen: an attribute of an object counts only through the class that somebody reached names, and code that is
found by a string only in the form `f"{__name__}:function"` (`labkit.offload.isolated`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PACKAGE = "labkit"
_ROOT = Path(__file__).resolve().parent.parent
_DECORATOR = "cell"
_UNSEEN = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}
"""Fields of a syntax tree that no behaviour depends on, or that not all versions of Python have."""

Place = tuple[str, str]
"""A module and a name in it; the empty name stands for the module's statements that define nothing."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A cell function as its decorator declares it."""

    name: str
    """Name of the cell function."""
    version: int
    """Declared version."""
    place: Place
    """Where it is defined."""


@dataclass
class Module:
    """The top level of one module of the package."""

    name: str
    """Dotted name."""
    path: Path
    """Its file."""
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """Statements that define each name."""
    imported: dict[str, Place] = field(default_factory=dict)
    """Names that come from other modules of the package; an empty name is the module itself."""
    loose: list[ast.stmt] = field(default_factory=list)
    """Statements that define nothing."""


def declared() -> dict[str, Declared]:
    """Find every cell function of the package by its decorator, importing nothing.

    Raises:
        ValueError: two functions have one name.
    """
    found: dict[str, Declared] = {}
    for path in sorted(_ROOT.rglob("*.py")):
        if f"@{_DECORATOR}(" not in path.read_text(encoding="utf-8"):
            continue
        module = name_of(path)
        for name, statements in _module(module).defined.items():
            for call in (call for statement in statements if (call := _cell_call(statement))):
                own = Declared(call.args[0].value, _literal(call, "version"), (module, name))
                if own.name in found:
                    raise ValueError(f"{own.place} and {found[own.name].place} are both cell {own.name!r}")
                found[own.name] = own
    return found


@functools.cache
def code_hash(name: str) -> str:
    """Return the sha256 over what a cell function reaches.

    Raises:
        ValueError: no such cell function.
    """
    known = declared()
    if name not in known:
        raise ValueError(f"no cell function {name!r}; there are: {', '.join(sorted(known))}")
    texts = sorted(text for place in reached(known[name].place) for text in _texts(place))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@functools.cache
def _texts(place: Place) -> tuple[str, ...]:
    """Return what is hashed of a definition; most are reached by many cell functions."""
    return tuple(map(_dump, _statements(place)))


def statements(start: Place) -> Iterator[ast.stmt]:
    """Yield every statement that a definition reaches, its own first."""
    for place in reached(start):
        yield from _statements(place)


@functools.cache
def reached(start: Place) -> tuple[Place, ...]:
    """Return the definitions that one reaches, itself included, in the order they are met."""
    seen: dict[Place, None] = {}
    pending = [start]
    while pending:
        place = pending.pop(0)
        if place not in seen:
            seen[place] = None
            pending += _references(place)
            pending.append((place[0], ""))
    return tuple(place for place in seen if _statements(place))


@functools.cache
def _references(place: Place) -> tuple[Place, ...]:
    """Return the definitions that a definition names."""
    module = _module(place[0])
    found: list[Place] = []
    for statement in _statements(place):
        local = {alias: target for node in ast.walk(statement) for alias, target in _imports(node, module.name)}
        _Names(module, module.imported | local, found).visit(statement)
    return tuple(dict.fromkeys(found))


class _Names(ast.NodeVisitor):
    """Collects what the names of a statement stand for."""

    def __init__(self, module: Module, imported: dict[str, Place], found: list[Place]) -> None:
        self._module, self._imported, self._found = module, imported, found

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_parts(node, [*(d for d in node.decorator_list if not _is_cell(d)), *_defaults(node), *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_parts(node, [node.target, *([node.value] if node.value else [])])

    def visit_Name(self, node: ast.Name) -> None:
        self._found += self._resolve(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and (target := self._imported.get(node.value.id)) and not target[1]:
            self._found += _lookup(target[0], node.attr)
        else:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        dynamic = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        if dynamic and isinstance(dynamic[0].value, ast.Name) and dynamic[0].value.id == "__name__" and parts:
            self._found += self._resolve(str(parts[-1]).removeprefix(":"))
        self.generic_visit(node)

    def _visit_parts(self, node: ast.AST, parts: Iterable[ast.AST]) -> None:
        for part in parts:
            self.visit(part)

    def _resolve(self, name: str) -> list[Place]:
        if name in self._imported:
            module, own = self._imported[name]
            return _lookup(module, own) if own else [(module, other) for other in _module(module).defined]
        return [(self._module.name, name)] if name in self._module.defined else []


def _lookup(module: str, name: str) -> list[Place]:
    """Find where a name of a module is defined, through what packages hand on."""
    if _path(f"{module}.{name}"):
        return [(f"{module}.{name}", other) for other in _module(f"{module}.{name}").defined]
    known = _module(module)
    if name in known.defined:
        return [(module, name)]
    if name in known.imported:
        source, own = known.imported[name]
        return _lookup(source, own) if own else []
    homes = [ast.literal_eval(s.value) for s in known.defined.get("_HOMES", []) if isinstance(s, ast.Assign)]
    return [place for home in homes if name in home for place in _lookup(f"{module}.{home[name]}", name)]


def _statements(place: Place) -> list[ast.stmt]:
    module, name = place
    return _module(module).defined.get(name, []) if name else _module(module).loose


def imported(module: str) -> set[Place]:
    """Return what the top level of a module of the package imports from its others."""
    return set(_module(module).imported.values())


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in its text."""
    tree = ast.parse(_module(module).path.read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    places = {place for node in ast.walk(tree) for _, place in _imports(node, module)}
    return {name for name in named if name.split(".")[0] == _PACKAGE} | {source for source, _ in places}


@functools.cache
def _module(name: str) -> Module:
    path = _path(name)
    assert path is not None, name
    module = Module(name, path)
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        names = _names_set(statement)
        for node in ast.walk(statement) if not isinstance(statement, ast.FunctionDef | ast.ClassDef) else ():
            module.imported.update(_imports(node, name))
        for own in names:
            module.defined.setdefault(own, []).append(statement)
        if not names and not isinstance(statement, ast.Import | ast.ImportFrom) and not _is_text(statement):
            module.loose.append(statement)
    return module


def _names_set(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _imports(node: ast.AST, module: str) -> Iterator[tuple[str, Place]]:
    """Yield the names that an import sets, with the module and name they stand for; other packages' are left out."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == _PACKAGE and alias.asname:
                yield alias.asname, (alias.name, "")
    elif isinstance(node, ast.ImportFrom):
        source = _absolute(node, module)
        for alias in node.names if source.split(".")[0] == _PACKAGE else ():
            inner = f"{source}.{alias.name}"
            yield alias.asname or alias.name, (inner, "") if _path(inner) else (source, alias.name)


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    package = module if _path(module).name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _path(module: str) -> Path | None:
    base = _ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = [_PACKAGE, *path.relative_to(_ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _defaults(node: ast.FunctionDef) -> list[ast.expr]:
    return [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]


def _is_cell(decorator: ast.expr) -> bool:
    called = isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
    return called and decorator.func.id == _DECORATOR


def _cell_call(statement: ast.stmt) -> ast.Call | None:
    return next((one for one in getattr(statement, "decorator_list", []) if _is_cell(one)), None)


def _literal(call: ast.Call, name: str) -> int:
    return next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == name)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_followed(node: Any) -> bool:
    """Whether a node imports from the package: what it names is in the hash, and its module's name is not."""
    return isinstance(node, ast.ImportFrom) and (node.level > 0 or (node.module or "").split(".")[0] == _PACKAGE)


def _dump(node: ast.AST) -> str:
    """Write a syntax tree down without what no behaviour depends on, the same in every version of Python."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    parts = []
    for name, value in ast.iter_fields(node):
        if name in _UNSEEN or (name == "decorator_list" and not value):
            continue
        items = value if isinstance(value, list) else [value]
        kept = [item for item in items if not (_is_text(item) or _is_cell(item) or _is_followed(item))]
        if kept and kept != [None]:
            parts.append(f"{name}=[{','.join(_dump(i) if isinstance(i, ast.AST) else repr(i) for i in kept)}]")
    return f"{type(node).__name__}({' '.join(parts)})"
