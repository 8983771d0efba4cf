"""A real browser: Debian's Chromium, driven by Playwright, which downloads none of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# A container has no sandbox and no GPU; nothing but the page under test is asked for.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
]


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser that is here; the test is skipped where there is none."""
    named = os.environ.get("LABKIT_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(
            "no Chromium found; `apt-get install chromium`, or set LABKIT_CHROMIUM to its path, and the browser tests "
            "run"
        )
    return found


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    """Chromium without a window; no longer than a module, since Playwright keeps an event loop running meanwhile."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()
