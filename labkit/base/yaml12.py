"""Read YAML the 1.2 way, strictly.

PyYAML follows YAML 1.1, where `1e-5` is text, `1:30` is 90, `010` is 8 and `on` is true. The core schema of YAML 1.2
(section 10.3.2) has none of these surprises. A key given twice is refused instead of silently winning.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                what = "a mapping or a list as a key, as in a template that was not filled in: {{ NAME }}"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text[2:], base) if base else int(text)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CORE_SCHEMA = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
for _tag, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def loads(text: str, source: str = "text") -> Any:
    """Parse one YAML 1.2 document.

    Args:
        text: the document.
        source: what to call it in an error, usually the file's path.

    Raises:
        ValueError: not valid YAML, or a key given twice; the message names the source and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise ValueError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        # A value that its tag or its length does not allow; these errors know no line.
        raise ValueError(f"{source}: {error}") from error


def read(path: Path) -> Any:
    """Parse a YAML 1.2 file; see `loads`.

    Raises:
        ValueError: not valid YAML, or not UTF-8.
        FileNotFoundError: no such file.
    """
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    plain = value and loads(value) == value if re.fullmatch(r"[\w.+/-]+", value) else True
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def dumps(value: Any) -> str:
    """Write YAML that means the same under 1.1 and 1.2, so that plain `papermill -f` reads it rightly."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
