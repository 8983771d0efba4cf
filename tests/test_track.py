"""Trackers: what a process measures arrives in a real AIM repository and in real event files, read back by their own
readers; a tracker that raises, hangs or finds the disk full stops nothing; nothing sensitive arrives.

Run with `pytest tests/test_track.py`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aim
import psutil
import pytest
from aim.sdk.index_manager import RepoIndexManager
from aim.sdk.repo import Repo
from aim.storage.context import Context
from PIL import Image, PngImagePlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import labkit.track
import labkit.track.child
from labkit import metrics
from labkit.base import paths
from labkit.track import aim_board, private
from labkit.track.trackers import TRACKERS, Step
from labkit.workflow import params

SECRET = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
MEASURING = """
import itertools, sys, types
from labkit import metrics
name, n = sys.argv[1], int(sys.argv[2])
ten_seconds_apart = itertools.count(1.7e9, 10)
metrics.time = types.SimpleNamespace(time=lambda: next(ten_seconds_apart))
metrics.begin(name, {"learning_rate": 0.01, "targets": ["q_proj"], "new_tokens": 64})
for step in range(n):
    metrics.emit(name, step, {"loss": 2.0 ** -step, "nan": float("nan")}, adapters={"h.0": step + 0.5, "h.1": 1.0})
metrics.emit(name, n, {"phase": "predict", "probe_after": 0.25})
"""


@dataclass
class Read:
    """What a repository holds of one run."""

    experiment: str
    settings: dict[str, Any]
    active: bool
    curves: dict[tuple[str, tuple], dict[int, float]] = field(default_factory=dict)
    """Values by step, by metric and context."""


def read_aim() -> dict[str, Read]:
    """Read all runs back by name, through AIM's own index."""
    repo = Repo(str(paths.output_root() / "runs" / "aim"))
    index = RepoIndexManager(repo)
    for run_hash in repo.list_all_runs():
        index.index(run_hash)
    repo.container_pool.clear()
    found = {}
    for run_hash in repo.list_all_runs():
        run = aim.Run(run_hash, repo=repo, read_only=True)
        assert run.name not in found, "no two runs have one name here"
        own = found[run.name] = Read(run.experiment, run[...], run.active)
        for metric in run.metrics():
            steps, (values, *_) = metric.data.items_list()
            context = tuple(sorted(metric.context.to_dict().items()))
            own.curves[metric.name, context] = dict(sorted(zip(steps, values, strict=True)))
    return found


def measure(name: str, n: int = 4) -> None:
    """Let another process measure, as a kernel or a worker does."""
    subprocess.run([sys.executable, "-c", MEASURING, name, str(n)], check=True)


def test_what_another_process_measures_arrives_in_aim() -> None:
    said: list[str] = []
    with labkit.track.follow("aim", "report", "machine", said.append):
        measure("one")
        measure("two", 2)
    found = read_aim()
    assert set(found) == {"report machine: one", "report machine: two"}
    one = found["report machine: one"]
    assert one.experiment == "report"
    settings = {"learning_rate": 0.01, "targets": ["q_proj"], "new_tokens": 64}
    assert one.settings == {"profile": "machine", "about": settings}
    assert not one.active
    assert one.curves == {
        ("loss", ()): {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125},
        ("grad_norm", (("adapter", "h.0"),)): {0: 0.5, 1: 1.5, 2: 2.5, 3: 3.5},
        ("grad_norm", (("adapter", "h.1"),)): {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0},
        ("probe_after", (("phase", "predict"),)): {4: 0.25},
    }
    kept = paths.runs("machine", "report") / "metrics.jsonl"
    assert said == [f"aim took 10 lines; they are kept in {kept}"]
    assert len(kept.read_text().splitlines()) == 10
    assert metrics.VARIABLE not in os.environ


def test_norms_of_adapters_go_over_every_few_seconds_and_stay_in_the_file_at_every_step(monkeypatch) -> None:
    own, clock = Recorder(), iter([100.0, 101.0, 104.9, 105.0, 105.1, 200.0])
    monkeypatch.setattr(metrics, "time", SimpleNamespace(time=lambda: next(clock)))
    with labkit.track.follow(lambda *names: own, "report", "machine", lambda line: None):
        for step in range(6):
            metrics.emit("one", step, {"loss": 1.0}, adapters={"h.0": 0.5})
    assert [line.step for line in own.steps if line.adapters] == [0, 3, 5]
    assert [line.step for line in own.steps] == list(range(6))
    kept = (paths.runs("machine", "report") / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["adapters"] for line in kept)


def test_lines_arrive_while_the_run_goes_on() -> None:
    own = Recorder()
    with labkit.track.follow(lambda *names: own, "report", "machine"):
        for step in range(3):
            metrics.emit("one", step, {"loss": 1.0})
            assert own.arrived.wait(10), f"the run is still on, and step {step} has not arrived"
            own.arrived.clear()
            time.sleep(0.2)


def test_more_runs_than_are_kept_open_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aim_board, "MOST_OPEN", 2)
    folder = paths.output_root() / "runs" / "aim"
    names = [f"cell {i}" for i in range(5)]
    with labkit.track.follow(lambda *own: aim_board.AimBoard(folder, *own), "report", "machine"):
        for step in range(3):
            for name in names:
                metrics.emit(name, step, {"loss": float(step)})
    found = read_aim()
    assert {name.partition(": ")[2] for name in found} == set(names)
    assert all(own.curves == {("loss", ()): {0: 0.0, 1: 1.0, 2: 2.0}} for own in found.values())
    assert not any(own.active for own in found.values())


def test_what_another_process_measures_arrives_in_event_files() -> None:
    for _ in range(2):
        with labkit.track.follow("tensorboard", "report", "machine"):
            measure("one")
    folders = sorted((paths.output_root() / "runs" / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == ["report machine one", "report machine one 2"]
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        assert scalars == {
            "loss": [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)],
            "grad_norm/h.0": [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5)],
            "grad_norm/h.1": [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)],
            "probe_after/predict": [(4, 0.25)],
        }
        about = events.Tensors("about/text_summary")[0].tensor_proto.string_val[0].decode()
        assert json.loads(about)["new_tokens"] == 64


def publish(folder: Path, **metadata: str) -> Path:
    """Publish a picture and numbers as a run does."""
    info = PngImagePlugin.PngInfo()
    for name, value in {"Title": "Loss falls.", **metadata}.items():
        info.add_text(name, value)
    folder.mkdir()
    Image.new("RGB", (40, 30), "navy").save(folder / "losses.png", pnginfo=info)
    results = {"speed/hybrid": {"value": 0.98, "ci": [0.96, 1.02], "unit": ""}, "words": {"value": "many"}}
    (folder / "results.json").write_text(json.dumps({"results": results, "provenance": metadata}))
    return folder


def test_published_figures_and_numbers_arrive(tmp_path: Path) -> None:
    folder = publish(tmp_path / "published")
    for name in ("aim", "tensorboard"):
        with labkit.track.follow(name, "report", "machine") as board:
            board.figures(folder)
    assert read_aim()["report machine: results"].settings["results"] == {"speed/hybrid": 0.98}
    repo = Repo(str(paths.output_root() / "runs" / "aim"))
    run = aim.Run(repo.list_all_runs()[0], repo=repo, read_only=True)
    shown = run.get_image_sequence("losses", Context({})).values.last()[1]
    assert shown.caption == "Loss falls."
    assert shown.to_pil_image().getpixel((0, 0)) == (0, 0, 128)
    events = EventAccumulator(str(paths.output_root() / "runs" / "tensorboard" / "report machine results")).Reload()
    assert events.Scalars("speed/hybrid")[0].value == pytest.approx(0.98)
    assert events.Images("losses")[0].width == 40


class Recorder:
    """A tracker that tells when it has a line, and keeps it."""

    def __init__(self) -> None:
        self.arrived, self.steps = threading.Event(), []

    def begin(self, run: str, about: dict[str, Any]) -> None: ...

    def step(self, line: Step) -> None:
        self.steps.append(line)
        self.arrived.set()

    def figures(self, folder: Path) -> None: ...

    def close(self) -> None: ...


def forwarding() -> list[psutil.Process]:
    """The processes that forward; other tests may have left children of their own."""
    return [child for child in psutil.Process().children() if labkit.track.child.__name__ in child.cmdline()]


def test_the_tracker_lives_in_an_idle_process_of_its_own() -> None:
    with labkit.track.follow("aim", "report", "machine"):
        (child,) = forwarding()
        deadline = time.monotonic() + 20
        while os.sched_getscheduler(child.pid) != os.SCHED_IDLE:
            assert time.monotonic() < deadline, "the process is still no idle one"
            time.sleep(0.05)
    assert not child.is_running()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_tracker_whose_process_dies_stops_nothing() -> None:
    said: list[str] = []
    with labkit.track.follow("aim", "report", "machine", said.append) as board:
        forwarding()[0].kill()
        time.sleep(0.2)
        metrics.emit("one", 0, {"loss": 1.0})
        board.figures(Path("nowhere"))
    assert said[0].startswith(
        "NOT TRACKED  aim failed after 0 lines: its process ended with code -9; what was measured"
    )


def test_a_process_forked_meanwhile_does_not_keep_the_tracker_waiting() -> None:
    said: list[str] = []
    with labkit.track.follow("aim", "report", "machine", said.append, drain_seconds=10):
        metrics.emit("one", 0, {"loss": 1.0})
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
    worker.kill()
    worker.join()
    assert said[0].startswith("aim took 1 lines")


def test_a_tracker_whose_process_hangs_is_killed() -> None:
    said: list[str] = []
    began = time.monotonic()
    with labkit.track.follow("aim", "report", "machine", said.append, drain_seconds=0.5):
        (child,) = forwarding()
        child.suspend()
    assert time.monotonic() - began < 3
    assert said[0].startswith("NOT TRACKED  aim was not done after 0.5 s of waiting at the end; what was measured")
    assert not child.is_running()


class Raises(Recorder):
    """A tracker that is down from its third line on."""

    lines = 0

    def step(self, line: Step) -> None:
        self.lines += 1
        if self.lines == 3:
            raise ConnectionError("the tracker is down\nand says so at length")


def test_a_tracker_that_raises_stops_nothing() -> None:
    said: list[str] = []
    with labkit.track.follow(lambda *names: Raises(), "report", "machine", said.append):
        for step in range(10):
            metrics.emit("one", step, {"loss": 1.0})
            time.sleep(0.1)
    kept = paths.runs("machine", "report") / "metrics.jsonl"
    failed = "NOT TRACKED  the tracker failed after 2 lines: ConnectionError: the tracker is down"
    assert said == [f"{failed}; what was measured is in {kept}"]
    assert len(kept.read_text().splitlines()) == 10


def test_a_tracker_that_cannot_be_opened_stops_nothing() -> None:
    said: list[str] = []
    (paths.output_root() / "runs").mkdir()
    (paths.output_root() / "runs" / "aim").write_text("a file where the repository belongs")
    with labkit.track.follow("aim", "report", "machine", said.append):
        metrics.emit("one", 0, {"loss": 1.0})
    assert said[0].startswith("NOT TRACKED  aim failed after 0 lines: FileExistsError")


def test_a_tracker_that_hangs_holds_nothing_up() -> None:
    said, over = [], threading.Event()

    class Hangs(Recorder):
        def step(self, line: Step) -> None:
            over.wait()

    began = time.monotonic()
    with labkit.track.follow(lambda *names: Hangs(), "report", "machine", said.append, drain_seconds=0.5):
        for step in range(100):
            metrics.emit("one", step, {"loss": 1.0})
        in_block = time.monotonic() - began
    over.set()
    assert in_block < 1
    assert time.monotonic() - began < in_block + 2
    assert said[0].startswith("NOT TRACKED  the tracker was not done after 0.5 s of waiting at the end; what")


FULL = """
import resource, sys
import labkit.track
import labkit.track.child
from labkit import metrics

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
with labkit.track.follow("aim", "report", "machine"):
    for step in range(3000):
        metrics.emit("one", step, {"loss": 1.0}, adapters={f"h.{i}": 0.1 for i in range(9)})
print("the run has ended")
"""


@pytest.mark.parametrize("room", [60_000, 400_000], ids=["at once", "on the way"])
def test_a_full_disk_stops_nothing(room: int) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(room)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the run has ended"
    assert "goes to no tracker" in done.stderr
    assert "NOT TRACKED" in done.stdout or "more were damaged" in done.stdout


def test_a_line_cut_short_costs_itself_alone() -> None:
    said: list[str] = []
    with labkit.track.follow("aim", "report", "machine", said.append):
        metrics.emit("one", 0, {"loss": 1.0})
        with open(os.environ[metrics.VARIABLE], "ab") as file:
            file.write(b'{"run": "one", "step": 1, "val')
        metrics.emit("one", 2, {"loss": 0.5})
        metrics.emit("one", 3, {"loss": 0.25})
    assert read_aim()["report machine: one"].curves["loss", ()] == {0: 1.0, 3: 0.25}
    assert ", 1 more were damaged" in said[0]


def test_nothing_sensitive_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, hidden = tmp_path / "home" / "mrs-miller", "correct horse battery"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SOME_API_KEY", hidden)
    about = {
        "harmless": "marker-that-arrives",
        "note": f"pushed with {SECRET}",
        "hf_token": "swordfish",
        "hubToken": "swordfish-too",
        "nested": {"db_password": "swordfish-again", "list": [f"{home}/data", "kept"]},
        "model": f"{home}/models/tiny",
        "said": f"it was {hidden}",
        "output_dir": "~/out",
    }
    folder = publish(tmp_path / "published", labkit=f'{{"path": "{home}"}}', Description=SECRET)
    for name in ("aim", "tensorboard"):
        with labkit.track.follow(name, "report", "machine") as board:
            metrics.begin(f"{home}/models/tiny tuned", about)
            metrics.emit(f"{home}/models/tiny tuned", 0, {"loss": 1.0, "phase": SECRET}, adapters={f"{home}/h.0": 1.0})
            board.figures(folder)
    settings = read_aim()["report machine: tiny tuned"].settings["about"]
    assert settings == {"harmless": "marker-that-arrives", "nested": {"list": ["kept"]}}
    files = [path for path in (paths.output_root() / "runs").rglob("*") if path.is_file()]
    whole = b"".join(path.read_bytes() for path in files if path.name != "metrics.jsonl")
    whole += "".join(str(path) for path in files).encode()
    assert b"marker-that-arrives" in whole
    assert all(
        re.fullmatch(r"events\.out\.tfevents\.\d+\.labkit", path.name) for path in files if "tfevents" in path.name
    )
    for planted in (SECRET, "mrs-miller", hidden, "swordfish", "tiny/", os.environ.get("PATH", "")):
        assert planted.encode() not in whole, planted


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("text-1m: adamw, rate 0.001, 200 steps, seed 0", None),
        ("tokens/s and/or 3 / 4, https://example.org/a", None),
        ("model.layers.0.self_attn.q_proj", None),
        ("phi3 from /srv/models/phi3, batch 2", "phi3 from phi3, batch 2"),
        ("C:\\Users\\miller\\phi3", "phi3"),
        ("file:///srv/models/phi3", "phi3"),
        (f"pushed with {SECRET}", "pushed with ***"),
    ],
)
def test_a_name_loses_only_what_is_nobodys_business(text: str, kept: str | None) -> None:
    assert private.text(text) == (kept or text)


@pytest.mark.parametrize("name", ["new_tokens", "prompt_tokens", "num_tokens", "author", "keyboard", "tokenizer"])
def test_a_harmless_setting_is_kept(name: str) -> None:
    assert private.settings({name: 3}) == {name: 3}


def test_an_unknown_tracker_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="unknown tracker 'wandb'; valid: aim, tensorboard, none"):
        labkit.track.choose("wandb")
    with (
        pytest.raises(ValueError, match="unknown tracker 'wandb'"),
        labkit.track.follow("wandb", "report", "machine"),
    ):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"not installed; run `pip install -e \.\[track\]`"):
        labkit.track.choose(name)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile of one's own in a clone."""
    folder = tmp_path / "params" / "hardware"
    folder.mkdir(parents=True)
    for name in ("claims.yaml", "hardware/ci.yaml"):
        (tmp_path / "params" / name).write_bytes((paths.root() / "params" / name).read_bytes())
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    return folder / "ci.yaml"


def test_a_profile_may_name_a_tracker(profile: Path) -> None:
    assert labkit.track.choose(None, params.track_of("ci")) is None
    own = profile.read_text()
    profile.write_text(f"track: aim\n{own}")
    assert labkit.track.choose(None, params.track_of("ci")) == "aim"
    assert labkit.track.choose("tensorboard") == "tensorboard"
    assert labkit.track.choose("none") is None
    assert params.resolve("claims", "ci").hardware == "ci"
    profile.write_text(f"track: none\n{own}")
    assert params.track_of("ci") is None
    assert labkit.track.choose(None, params.track_of("ci")) is None
    profile.write_text(f"track: wandb\n{own}")
    with pytest.raises(ValueError, match=r"ci\.yaml: track: 'wandb' is no tracker; valid: aim, tensorboard, none"):
        labkit.track.choose(None, params.track_of("ci"))


def test_without_a_tracker_nothing_is_written() -> None:
    with labkit.track.follow(None, "report", "machine") as board:
        metrics.emit("one", 0, {"loss": 1.0})
        board.figures(Path("nowhere"))
    assert not list(paths.output_root().iterdir())
