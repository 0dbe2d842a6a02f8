"""Chromium for the tests of this folder, which `make test-browser` runs; skipped without it."""

import shutil
import socket

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


def pytest_terminal_summary(terminalreporter):
    """How long Run All took in the browser."""
    passed = terminalreporter.stats.get("passed", [])
    found = [dict(report.user_properties).get("run_all") for report in passed]
    lines = [line for line in found if line]
    if lines:
        terminalreporter.write_line("seconds of Run All in the browser: " + ", ".join(lines))


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the tests of a file."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]
