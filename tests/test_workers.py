"""The pool of workers: it ends with its block, and at once where the block is interrupted."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from labkit.workers import process_pool

LONG_SECONDS = 120


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_an_interrupt_ends_what_is_under_way_and_drops_what_waits() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(2) as pool:  # noqa: PT012
        first = pool.submit(pid_after, 0).result()
        waiting = [pool.submit(pid_after, LONG_SECONDS) for _ in range(6)]
        while not any(future.running() for future in waiting):
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert time.monotonic() - started < LONG_SECONDS / 2
    while not all(future.done() for future in waiting) and time.monotonic() < started + 30:
        time.sleep(0.05)
    assert all(future.cancelled() or future.exception(timeout=0) for future in waiting), "nothing was worked off"
    gone, alive = psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=20)
    assert not alive, gone


def test_a_worker_leaves_it_to_its_parent_what_an_interrupt_means() -> None:
    with process_pool(1) as pool:
        pid = pool.submit(pid_after, 0).result()
        busy = pool.submit(pid_after, 1)
        time.sleep(0.3)
        os.kill(pid, signal.SIGINT)
        assert busy.result() == pid


def test_a_block_that_ends_well_waits_for_all_of_its_work() -> None:
    with process_pool(2) as pool:
        futures = [pool.submit(pid_after, 0.2) for _ in range(4)]
    assert all(future.done() for future in futures)
