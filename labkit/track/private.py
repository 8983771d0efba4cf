"""What no tracker is told: secrets, and where things lie on this machine.

A setting goes by its name or its value; a name or caption that must stay loses the part that is nobody's business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(
    r"secret|passw(or)?d|passphrase|credential|api_?key|(access|private|auth|ssh)_?key|(^|_)(auth|pwd)($|_)"
)
_TOKEN_NAME = re.compile(r"(^|_)tokens?($|_)")
_SECRET = re.compile(r"\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[a-z]-|AKIA)[A-Za-z0-9_-]{12,}|\bBearer \S+")
_PATH = re.compile(r"(?:file://|(?<![\w.:/\\-])(?:~|[A-Za-z]:)?)[/\\]+[\w.~][^\s\"'<>|,;:)]*")
"""An absolute path wherever it stands in a text; a URL's own slashes follow a colon and are none."""
_HIDDEN = "***"
_SHORTEST_SECRET = 8
"""A shorter value of a secret variable, such as `0`, could be anything."""


def settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that are nobody's business, at any depth."""
    kept = {str(name): _value(value) for name, value in about.items() if not _is_secret_name(str(name), value)}
    return {name: value for name, value in kept.items() if value is not None and not _is_sensitive(name)}


def words(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts among values that anybody may read."""
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    return {name: text for name, text in texts.items() if not _is_secret_name(name, text) and not _is_sensitive(text)}


def text(value: str) -> str:
    """Return a name or caption with paths cut to their last part and secrets hidden."""
    value = _SECRET.sub(_HIDDEN, value)
    for secret in _secrets():
        value = value.replace(secret, _HIDDEN)
    value = _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], value)
    return value.replace(_home(), "~")


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return settings(value)
    if isinstance(value, list | tuple):
        return [own for own in map(_value, value) if own is not None]
    return None if isinstance(value, str) and _is_sensitive(value) else value


def _is_sensitive(value: str) -> bool:
    if _SECRET.search(value) or _PATH.search(value) or _home() in value:
        return True
    return any(secret in value for secret in _secrets())


def _is_secret_name(name: str, value: Any) -> bool:
    """A count of tokens is no secret; neither is a setting that is off."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower()
    if _SECRET_NAME.search(plain):
        return True
    return bool(_TOKEN_NAME.search(plain)) and not isinstance(value, int | float | None)


def _home() -> str:
    return str(Path.home())


def _secrets() -> list[str]:
    """List the values of this process's secret variables, which may turn up anywhere."""
    values = [value for name, value in os.environ.items() if _is_secret_name(name, value)]
    return [value for value in values if len(value) >= _SHORTEST_SECRET]
