"""Servers that the browser is pointed at: a port for one, and waiting until it is up."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def free_port(wanted: int = 0) -> int:
    """Return a port, the wanted one if nobody has it."""
    for port in (wanted, 0):
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("127.0.0.1", port))
            except OSError:
                continue
            return own.getsockname()[1]
    raise AssertionError("no port is free")


def wait_for(is_up: Callable[[], bool], server: subprocess.Popen, log: Path, seconds: float) -> None:
    """Wait until a server is up; a connection that is refused means not yet."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            if is_up():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"the server did not come up\n{log.read_text()}")
