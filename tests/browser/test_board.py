"""The board of tracked runs in a real browser: a preference arm and a streamed model are found by name, with a curve of
their loss.

Both are really trained, tiny; the board is the one that `make aim` serves.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from playwright.sync_api import Browser, Page, Route
from servers import free_port, wait_for
from transformers import AutoModelForCausalLM, Phi3Config

import labkit.track
from labkit import metrics
from labkit.base import paths
from labkit.offload import StreamedLM
from labkit.progress import Progress
from labkit.reports.size_inertia import study
from labkit.workflow import params
from labkit.workflow.cells import Cells

sys.path.append(str(paths.root() / "tests" / "inertia"))
from tiny_arms import arm, write_model

STARTUP_SECONDS = 120
ARM, STREAMED = "tiny arm", "tiny streamed"
LOCAL = re.compile(r"(https?|wss?)://127\.0\.0\.1:\d+/|data:|blob:")
DECORATION = re.compile(r"https://(cdn\.jsdelivr\.net/pyodide/|fonts\.googleapis\.com/|fonts\.gstatic\.com/)")
"""What AIM's page asks for beside itself: an icon font, and an interpreter that only its reports need."""


def train_arm(folder: Path) -> None:
    """Train an arm as report 000 does."""
    cells = Cells.of("ci", "size_inertia", Progress(1, "arm"))
    walk = study._Walk(study.Study(params.resolve("size_inertia", "ci"), cells))
    assert walk._arm(arm(write_model(folder, "smollm2-135m"), name=ARM)), cells.failures


def train_streamed(folder: Path) -> None:
    """Train adapters of a model that is read layer by layer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape |= {"vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0}
    AutoModelForCausalLM.from_config(Phi3Config(**shape)).save_pretrained(folder)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj"])
    model = StreamedLM(folder, lora=lora, callbacks=[metrics.of_steps(STREAMED)])
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-2)
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(1))
    for _ in range(6):
        model.step({"input_ids": ids, "labels": ids}, optimizer)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose repository holds both runs."""
    folder, threads = tmp_path_factory.mktemp("tracked"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUTPUT", str(folder))
        for train, report in ((train_arm, "size_inertia"), (train_streamed, "chunked_offload")):
            with labkit.track.follow("aim", report, "ci"):
                train(folder / report)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def board(output: Path) -> Iterator[str]:
    """The address of the board, started by the commands of `make aim`."""
    asked = ["make", "-n", "aim", f"LABKIT_OUTPUT={output}", f"BIN={Path(sys.executable).parent}"]
    lines = subprocess.run(asked, cwd=paths.root(), capture_output=True, text=True, check=True).stdout.splitlines()
    start = next(line for line in lines if " up " in line)
    assert "--host 127.0.0.1 --port 53800" in start
    address = f"http://127.0.0.1:{(port := free_port(53800))}"
    command = start.replace("--port 53800", f"--port {port}")
    with (output / "board.log").open("wb") as log:
        served = subprocess.Popen(command.split(), stdout=log, stderr=log, start_new_session=True, cwd=paths.root())
    try:
        wait_for(lambda: knows_both(address), served, output / "board.log", STARTUP_SECONDS)
        yield address
    finally:
        os.killpg(served.pid, signal.SIGTERM)
        served.wait(30)


def knows_both(address: str) -> bool:
    """Say whether the board has found both runs."""
    with urllib.request.urlopen(f"{address}/api/projects/activity", timeout=5) as answer:
        return json.load(answer)["num_runs"] == 2


@pytest.fixture
def page(browser: Browser, board: str) -> Iterator[Page]:
    """A page of a machine without a network, which asks nobody for anything that matters."""
    opened = browser.new_page(base_url=board, viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(60_000)
    foreign: list[str] = []

    def refuse(route: Route) -> None:
        foreign.append(f"{route.request.method} {route.request.url}")
        route.abort()

    opened.route(lambda url: not LOCAL.match(url), refuse)
    yield opened
    opened.close()
    assert [asked for asked in foreign if not DECORATION.match(asked.removeprefix("GET "))] == []


@pytest.mark.parametrize(("report", "run"), [("size_inertia", ARM), ("chunked_offload", STREAMED)])
def test_a_run_is_found_by_name_and_shows_its_loss(
    page: Page, output: Path, tmp_path: Path, report: str, run: str
) -> None:
    page.goto("/runs")
    found = page.get_by_role("link", name=f"{report} ci: {run}", exact=True)
    found.wait_for()
    page.screenshot(path=tmp_path / "runs.png")
    found.click()
    page.get_by_role("tab", name="Metrics", exact=True).click()
    box = page.locator("[class$='chartContainer']").filter(has=page.get_by_text("loss", exact=True))
    box.scroll_into_view_if_needed()
    line = box.locator("path.Line")
    line.wait_for(state="attached")
    drawn = np.array([float(number) for number in re.findall(r"-?[\d.]+", line.get_attribute("d"))]).reshape(-1, 2)
    page.screenshot(path=tmp_path / "loss.png")
    measured = losses(output / "runs" / "ci" / report / "metrics.jsonl")
    assert len(drawn) == len(measured) == 6
    # Pixels count downwards from the largest loss on.
    assert np.corrcoef(drawn[:, 1], measured)[0, 1] == pytest.approx(-1, abs=1e-6)


def losses(path: Path) -> list[float]:
    """Return the losses that were measured, step by step."""
    values = [json.loads(line).get("values", {}) for line in path.read_text().splitlines()]
    return [own["loss"] for own in values if "loss" in own]
