"""A real pseudo-terminal: what a command shows where somebody sees its stderr."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Sequence


def shown_in_terminal(command: Sequence[str], columns: int = 120, **env: str) -> str:
    """Run a command with stderr on a pseudo-terminal and return what the terminal received.

    Raises:
        CalledProcessError: the command failed; its stderr is what the terminal received.
    """
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)} | env
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = _read(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=shown)
    return shown


def _read(terminal: int) -> str:
    received = b""
    with os.fdopen(terminal, "rb", buffering=0) as file:
        # Linux reports the closed other end of a pseudo-terminal as an error, after everything has been read.
        try:
            while chunk := file.read(65536):
                received += chunk
        except OSError:
            return received.decode()
    return received.decode()
