"""Tiny models on disk, shared by the tests of preference training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_arms import SHAPES, write_model


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama among them."""
    return write_model(tmp_path_factory.mktemp("llama"), "smollm2-135m")
