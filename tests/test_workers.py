"""The pool of workers: it ends with its block, at once where the block is interrupted, and not at all where workers
would run the program that asks for them again; what such a program does is seen in a process of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from labkit.base.workers import process_pool

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


IMPORTS = "import os\nfrom labkit.base.workers import process_pool\n"
WORK = "with process_pool(1) as pool:\n    print(pool.submit(os.getpid).result() != os.getpid())\n"
GUARDED = 'if __name__ == "__main__":\n'


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def ran(arguments: list[str], program: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], input=program, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (IMPORTS + WORK, 3),
        (IMPORTS + "def main():\n" + indented(WORK) + "main()\n", 6),
        (IMPORTS + GUARDED + "    print('guarded')\n" + WORK, 5),
        (IMPORTS + "if True:\n" + indented(WORK), 4),
    ],
    ids=["at the top", "in a function called at the top", "beside a guard", "under another if"],
)
def test_a_script_without_a_guard_is_told_once_what_to_write(program: str, line: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(program)
    done = ran([str(script)])
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert f"ValueError: {script}, line {line}: the workers import this file" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr


@pytest.mark.parametrize(
    "program",
    [
        IMPORTS + GUARDED + indented(WORK),
        IMPORTS + "def main():\n" + indented(WORK) + GUARDED + "    main()\n",
        IMPORTS + GUARDED + "    if True:\n" + indented(indented(WORK)),
    ],
    ids=["under it", "in a function called under it", "deeper under it"],
)
def test_a_script_with_a_guard_has_its_workers(program: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(program)
    done = ran([str(script)])
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_program_from_standard_input_is_told_to_become_a_file() -> None:
    done = ran(["-"], IMPORTS + WORK)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "it came from <stdin>: save it as a file" in done.stderr


def test_a_program_on_the_command_line_has_its_workers() -> None:
    done = ran(["-c", IMPORTS + WORK])
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
