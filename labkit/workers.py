"""Worker processes for work that is cut into independent pieces."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

_LOOK_SECONDS = 1.0


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Have worker processes that end with their parent, even if it is killed.

    Where the block raises, what waits is dropped and what is under way ends at once: who presses the stop button does
    not want to wait for the rest of a grid.
    """
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
