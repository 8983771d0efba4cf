"""Checks labkit.progress with a clock that the test moves by hand, so every expected time is exact arithmetic.

The terminal is a real pseudo-terminal and the heartbeat is also read by another process while the work goes on.

Run: pytest tests/test_progress.py
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from terminals import shown_in_terminal

from labkit.progress import HEARTBEAT_SECONDS, Heartbeat, Progress, is_alive, read_heartbeat, resident_bytes


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_HEARTBEAT", raising=False)
    monkeypatch.delenv("LABKIT_HEADLESS", raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def start(total: int, log: io.StringIO, clock: Clock, **settings: Any) -> Progress:
    return Progress(total, "grid", stream=log, clock=clock, **settings)


def lines(shown: str) -> list[str]:
    """Return what was shown line by line without the memory, which is of this process and must be in each."""
    memory = re.compile(r", \d[\d.]* [MG]iB")
    found = shown.splitlines()
    assert all(memory.search(line) for line in found if "grid" in line), shown
    return [memory.sub("", line) for line in found]


def test_time_left_is_the_mean_time_of_an_item_times_the_items_left(clock: Clock, log: io.StringIO) -> None:
    with start(16, log, clock) as progress:
        assert progress.eta_seconds() is None
        clock.wait(10)
        progress.advance()
        clock.wait(30)
        progress.advance()
        assert progress.eta_seconds() == 14 * 20


def test_items_already_there_do_not_distort_the_time_left(clock: Clock, log: io.StringIO) -> None:
    with start(16, log, clock) as progress:
        for _ in range(8):
            clock.wait(0.5)
            progress.skip()
        assert progress.eta_seconds() is None
        clock.wait(10)
        progress.advance()
        progress.skip(3)
        assert progress.eta_seconds() == 4 * 10


def test_work_found_on_the_way_counts_towards_the_total(clock: Clock, log: io.StringIO) -> None:
    with start(4, log, clock) as progress:
        clock.wait(10)
        progress.advance()
        progress.extend(2)
        assert progress.eta_seconds() == 5 * 10
        progress.advance(5)
    assert "grid: 6/6 (100%)" in log.getvalue()


def test_more_than_was_planned_is_never_more_than_all(clock: Clock, log: io.StringIO) -> None:
    with start(2, log, clock) as progress:
        progress.advance(2)
        progress.skip()
    assert "grid: 3/3 (100%)" in log.getvalue().splitlines()[-1]


def test_time_before_the_block_is_entered_does_not_count(clock: Clock, log: io.StringIO) -> None:
    progress = start(2, log, clock)
    clock.wait(500)
    with progress:
        clock.wait(3)
        progress.advance()
        assert progress.eta_seconds() == 3


def test_log_gets_the_first_and_last_line_and_one_per_period(clock: Clock, log: io.StringIO) -> None:
    with start(100, log, clock, every_seconds=10) as progress:
        for i in range(100):
            clock.wait(0.25)
            progress.advance(message=f"cell {i}")
    assert lines(log.getvalue()) == [
        "grid: 0/100 (0%)",
        "grid: 40/100 (40%), about 15.0 s left, cell 39",
        "grid: 80/100 (80%), about 5.0 s left, cell 79",
        "grid: 100/100 (100%), cell 99, after 25.0 s",
    ]


def test_no_work_at_all_is_still_reported(clock: Clock, log: io.StringIO) -> None:
    with start(0, log, clock):
        pass
    assert lines(log.getvalue()) == ["grid: 0/0", "grid: 0/0, after 0 ms"]


def test_failure_is_named_in_the_log_and_the_heartbeat(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    heartbeat = tmp_path / "heartbeat.json"

    def work() -> None:
        with start(3, log, clock, heartbeat=heartbeat) as progress:
            clock.wait(5)
            progress.advance()
            raise KeyError("lr")

    with pytest.raises(KeyError):
        work()
    assert lines(log.getvalue())[-1] == "grid: 1/3 (33%), stopped by KeyError: 'lr', after 5.0 s"
    beat = read_heartbeat(heartbeat)
    assert beat is not None
    assert (beat.done, beat.eta_seconds, beat.message) == (1, None, "stopped by KeyError: 'lr'")


def test_who_interrupts_resumable_work_is_told_how_to_go_on(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    for resumable in (True, False):
        with pytest.raises(KeyboardInterrupt), start(3, log, clock, resumable=resumable):
            raise KeyboardInterrupt
    stopped = [line for line in lines(log.getvalue()) if "interrupted" in line]
    assert "interrupted; what is finished is kept, run it again to go on" in stopped[0]
    assert "kept" not in stopped[1]


def test_a_remark_on_the_item_under_way_is_shown_and_counts_nothing(
    tmp_path: Path, clock: Clock, log: io.StringIO
) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with start(2, log, clock, heartbeat=heartbeat) as progress:
        clock.wait(11)
        progress.note("step 3/40, loss 0.69")
        beat = read_heartbeat(heartbeat)
    assert "grid: 0/2 (0%), step 3/40, loss 0.69" in lines(log.getvalue())
    assert beat is not None
    assert (beat.done, beat.message, beat.eta_seconds) == (0, "step 3/40, loss 0.69", None)


def test_memory_is_that_of_the_process_and_its_children(clock: Clock, log: io.StringIO) -> None:
    code = "import sys; held = b'x' * 300_000_000; print(len(held), flush=True); sys.stdin.readline()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = resident_bytes()
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as child:
        child.stdout.readline()
        assert 290_000_000 < resident_bytes() - before < 400_000_000
        child.communicate("\n")


def test_a_process_that_has_ended_or_came_later_is_not_at_work(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with start(1, log, clock, heartbeat=heartbeat):
        beat = read_heartbeat(heartbeat)
    assert is_alive(beat)
    assert not is_alive(replace(beat, time=psutil.Process().create_time() - 10))
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not is_alive(replace(beat, pid=done.pid))


def test_heartbeat_follows_the_work(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    heartbeat = tmp_path / "runs" / "heartbeat.json"
    with start(4, log, clock, heartbeat=heartbeat) as progress:
        beats = [read_heartbeat(heartbeat)]
        clock.wait(6)
        progress.advance(message="d64_l4")
        beats.append(read_heartbeat(heartbeat))
    seen = [(beat.label, beat.done, beat.total, beat.eta_seconds, beat.message) for beat in beats if beat]
    assert seen == [("grid", 0, 4, None, ""), ("grid", 1, 4, 18.0, "d64_l4")]
    assert [path.name for path in heartbeat.parent.iterdir()] == ["heartbeat.json"]


def test_heartbeat_is_not_rewritten_for_every_item(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with start(1000, log, clock, heartbeat=heartbeat) as progress:
        clock.wait(2)
        progress.advance()
        written = heartbeat.stat().st_mtime_ns, heartbeat.stat().st_ino
        for _ in range(100):
            progress.advance()
        assert (heartbeat.stat().st_mtime_ns, heartbeat.stat().st_ino) == written


def test_what_came_too_soon_for_the_heartbeat_is_written_before_a_long_item_ends(tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with Progress(3, "grid", heartbeat=heartbeat, stream=io.StringIO()) as progress:
        progress.advance(message="first")
        progress.advance(message="second")
        assert read_heartbeat(heartbeat).done == 0
        time.sleep(HEARTBEAT_SECONDS + 0.5)
        assert read_heartbeat(heartbeat).message == "second"
        progress.advance(message="third")
    time.sleep(HEARTBEAT_SECONDS + 0.5)
    assert read_heartbeat(heartbeat).message == "third"


def test_another_process_reads_the_heartbeat_that_the_environment_names(tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    code = """
import sys
from labkit.progress import Progress
with Progress(5, "decode") as progress:
    progress.skip(2, "cached")
    print("ready", flush=True)
    sys.stdin.readline()
"""
    env = os.environ | {"LABKIT_HEARTBEAT": str(heartbeat)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        during = read_heartbeat(heartbeat)
        child.communicate("\n")
    after = read_heartbeat(heartbeat)
    assert during is not None
    assert after is not None
    assert (during.label, during.total, during.pid) == ("decode", 5, child.pid)
    assert (after.done, after.message) == (2, "cached")


def test_no_heartbeat_yet_is_none_and_another_file_is_refused(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path / "heartbeat.json") is None
    for text in ("{", '{"label": "grid"}', "[1]"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other\.json is not a heartbeat"):
            read_heartbeat(tmp_path / "other.json")


def test_heartbeat_file_is_plain_json(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with start(1, log, clock, heartbeat=heartbeat):
        pass
    assert set(json.loads(heartbeat.read_text())) == set(Heartbeat.__dataclass_fields__)


IN_TERMINAL = """
from labkit.progress import Progress
with Progress(3, "grid") as progress:
    progress.advance(3, message="[d64_l4]")
"""


def test_terminal_gets_one_bar_with_the_text_of_the_lines() -> None:
    shown = shown_in_terminal([sys.executable, "-c", IN_TERMINAL])
    assert "\x1b[" in shown
    assert "━" in shown
    assert "grid: 3/3 (100%), [d64_l4]" in "".join(lines(shown))


def test_headless_run_in_a_terminal_gets_plain_lines() -> None:
    shown = shown_in_terminal([sys.executable, "-c", IN_TERMINAL], LABKIT_HEADLESS="1")
    assert "\x1b[" not in shown
    assert lines(shown)[0] == "grid: 0/3 (0%)"


IN_KERNEL = """
from labkit.progress import Progress
with Progress(3, "grid <b>") as progress:
    progress.advance(2, message="d64_l4")
"""


def run_in_kernel(code: str, **env: str) -> Any:
    """Run a cell in a kernel of this environment and return the notebook with its outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        return NotebookClient(notebook, kernel_name="python3", timeout=120).execute()


def test_a_notebook_gets_a_widget_that_follows_and_words_for_whoever_has_no_kernel() -> None:
    notebook = run_in_kernel(IN_KERNEL)
    (shown,) = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    assert lines(shown.data["text/plain"]) == ["grid <b>: 0/3 (0%)"]
    states = [
        own["state"] for own in notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    ]
    (bar,) = (state for state in states if "bar_style" in state)
    assert (bar["value"], bar["max"], bar["bar_style"]) == (2, 3, "warning")
    (words,) = (state["value"] for state in states if "grid" in str(state.get("value")))
    assert words.startswith("grid &lt;b&gt;: 2/3 (67%)")


def test_a_headless_run_of_a_notebook_gets_plain_lines() -> None:
    notebook = run_in_kernel(IN_KERNEL, LABKIT_HEADLESS="1")
    assert {output.get("name") for output in notebook.cells[0].outputs} == {"stderr"}


@pytest.mark.parametrize("settings", [{"total": -1}, {"total": 1, "every_seconds": -0.1}])
def test_a_negative_total_or_period_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="grid: total is"):
        Progress(label="grid", **settings)
