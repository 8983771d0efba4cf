"""Worker processes for independent cells."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_LOOK_SECONDS = 1.0


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Have worker processes that end with their parent, even if it is killed.

    Where the block raises, what waits is dropped and what is under way ends at once: who presses the stop button does
    not want to wait for the rest of a grid.

    Raises:
        ValueError: the workers could not import the program that asks for them; the message says what it lacks.
    """
    require_importable()
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_follow_parent, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        at_work = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in at_work:
            process.terminate()
        raise
    else:
        pool.shutdown()


def _follow_parent(parent: int) -> None:
    """End when the parent has ended, and leave it to the parent what an interrupt means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def require_importable() -> None:
    """Refuse a program that its own workers cannot import.

    A spawned worker imports the main module before it works. A line there that needs workers would come again in each
    of them, unless it stands under a guard that only the program itself passes.

    Raises:
        ValueError: the message says what the program lacks.
    """
    main = sys.modules["__main__"]
    file, line = getattr(main, "__file__", None), _current_line(vars(main))
    if file is None or line is None:
        return  # a notebook or an interactive session, which workers do not import
    remedy = 'put what it runs under a guard:\n\n    if __name__ == "__main__":\n        ...'
    if not Path(file).is_file():
        raise ValueError(f"the workers import the program, and it came from {file}: save it as a file, and {remedy}")
    if not _is_guarded(ast.parse(Path(file).read_text(encoding="utf-8")), line):
        raise ValueError(f"{file}, line {line}: the workers import this file and would run this line again; {remedy}")


def _current_line(names: dict[str, object]) -> int | None:
    """Return the line that the top level of a module is at; None if it is not what runs in this thread."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is names and frame.f_code.co_name == "<module>":
            return frame.f_lineno
        frame = frame.f_back
    return None


def _is_guarded(program: ast.Module, line: int) -> bool:
    """Say whether a line stands in the body of an `if` that asks for `__name__`."""
    asking = (node for node in ast.walk(program) if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
    return any(node.body[0].lineno <= line <= node.body[-1].end_lineno for node in asking)
