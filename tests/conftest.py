"""What every test gets: an output folder of its own, no display, no network for model hubs.

The cache of corpora stays the user's, so that a corpus is fetched once and not once a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Libraries read these when they are imported, which happens while tests are collected.
os.environ["MPLBACKEND"] = "agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What cells of report 000 ask of oneDNN holds for a process, which tests of others may have begun.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")
# A kernel of the same name in the user's home must not win over this environment's.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

_OF_ONE_RUN = ("LABKIT_ROOT", "LABKIT_STAGING", "LABKIT_HEARTBEAT", "LABKIT_HEADLESS", "LABKIT_DEBUG")


@pytest.fixture(scope="session", autouse=True)
def _no_run_around_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget what a surrounding `labkit run` has set; fixtures that outlive a test write to one shared folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _OF_ONE_RUN:
            patch.delenv(name, raising=False)
        patch.setenv("LABKIT_OUTPUT", str(tmp_path_factory.mktemp("shared-output")))
        yield


@pytest.fixture(autouse=True)
def output_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of figures/ and runs/ of one test, so that no test writes to the repository or sees another's runs."""
    folder = tmp_path_factory.mktemp("output")
    monkeypatch.setenv("LABKIT_OUTPUT", str(folder))
    return folder


@pytest.fixture(scope="session")
def ci_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of the notebooks at their own defaults: a second run finds the cells of the first."""
    return tmp_path_factory.mktemp("ci-output")
