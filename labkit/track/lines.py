"""The lines of a metrics file, read while other processes append to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PIECE = 1 << 20


class Lines:
    """Reads a file from its start, whole lines only, as far as they have been written."""

    def __init__(self, path: Path) -> None:
        """Take the file, which need not be there yet."""
        self._path, self._offset = path, 0
        self.damaged = 0
        """Lines that are not JSON: a full disk cuts them short."""

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield what has been appended since the last line that was yielded."""
        while piece := self._piece():
            for line in piece.splitlines():
                self._offset += len(line) + 1
                try:
                    yield json.loads(line)
                except ValueError:
                    self.damaged += 1

    def _piece(self) -> bytes:
        """Return some whole lines; the rest of an unfinished one waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                piece = file.read(_PIECE)
                while b"\n" not in piece and (more := file.read(_PIECE)):
                    piece += more
        except FileNotFoundError:
            return b""
        return piece[: piece.rfind(b"\n") + 1]
