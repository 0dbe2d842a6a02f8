"""`make lab` in Chromium: it opens on 00_start, Run All ends without an error, sliders answer.

The notebooks run one after another, in the order of the map, on the default preset. They share an
outputs folder that is empty at first, so that a notebook finds the runs of those before it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

REPO = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (REPO / "notebooks").glob("*.ipynb"))
LEFT_OUT = {".git", ".venv", "build", "data", "outputs/runs"}  # large, and not needed
PATIENCE = 600  # seconds for one notebook
QUICK = ("00_start", "01_masking")  # what .ci/run opens


def left_out(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder, name).relative_to(REPO).as_posix() for name in names}
    return [name for name, path in paths.items() if path in LEFT_OUT or name == "__pycache__"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository: JupyterLab saves what it runs."""
    copy = tmp_path_factory.mktemp("lab") / "repository"
    return shutil.copytree(REPO, copy, ignore=left_out)


@pytest.fixture(scope="module")
def lab(copy, free_port, tmp_path_factory):
    """The address of JupyterLab as `make lab` starts it, and what was printed."""
    options = f"--no-browser --port={free_port} --IdentityProvider.token= --allow-root"
    options += " --ServerApp.disable_check_xsrf=True"  # so that a test may end a kernel
    make = ["make", "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}", f"LAB={options}"]
    outputs = tmp_path_factory.mktemp("outputs")
    environment = {**os.environ, "PYTHONPATH": str(copy), "UMAE_OUTPUTS": str(outputs)}
    for name in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"):  # as on the first start
        environment[name] = str(tmp_path_factory.mktemp("jupyterlab"))
    environment.pop("MPLBACKEND", None)
    with open(outputs / "lab.log", "w") as log:
        process = subprocess.Popen(
            [*make, "lab"], cwd=copy, env=environment, stdout=log, stderr=log, process_group=0
        )
    address = f"http://localhost:{free_port}"
    wait_for(lambda: answers(address), 120, "JupyterLab does not answer")
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/api/status", timeout=5).status == 200
    except OSError:
        return False


def wait_for(condition, seconds: float, message: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.2)


@pytest.fixture(scope="module")
def window(browser):
    """Pages of one window share what was loaded."""
    window = browser.new_context(viewport={"width": 1400, "height": 1000})
    yield window
    window.close()


def opened(window, address: str, path: str):
    """A page on which the notebook is open and its kernel ready."""
    page = window.new_page()
    page.goto(f"{address}/lab/tree/{path}?reset", wait_until="load")
    page.wait_for_selector(".jp-NotebookPanel:visible .jp-Cell", timeout=120_000)
    wait_for(lambda: is_connected(address, path), 180, "no kernel is ready")
    page.wait_for_selector(".jp-NotebookPanel:visible [data-status='idle']", timeout=180_000)
    return page


def sessions(address: str) -> list[dict]:
    return json.load(urllib.request.urlopen(f"{address}/api/sessions", timeout=30))


def is_connected(address: str, path: str) -> bool:
    """Whether a kernel of the notebook waits, and a page listens to it."""
    kernels = [session["kernel"] for session in sessions(address) if session["path"] == path]
    return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def errors(path: Path) -> list[str]:
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    return [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]


def is_done(page, address: str, path: Path) -> bool:
    """Saves where the kernel waits; whether the file has run to its end or has stopped."""
    if any(session["kernel"]["execution_state"] != "idle" for session in sessions(address)):
        return False
    page.keyboard.press("Control+s")
    time.sleep(1)
    return bool(errors(path)) or all(cell.execution_count for cell in code_cells(path))


def run_all(page, address: str, path: Path) -> float:
    """Seconds of Run All Cells; fails if the notebook has not ended in time."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    started = time.monotonic()
    wait_for(lambda: is_done(page, address, path), PATIENCE, f"{path.stem} has not ended")
    return time.monotonic() - started


def close(page, address: str) -> None:
    """Closes the page and ends its kernel, whose memory the next notebook needs."""
    page.close()
    for session in sessions(address):
        url = f"{address}/api/sessions/{session['id']}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60).close()


def move_a_slider(page) -> None:
    """Presses an arrow key on the first slider of the page; its picture and its text change."""
    handle = page.locator(".jp-OutputArea .noUi-handle").first
    picture = page.locator(".jp-OutputArea img[alt^='Figure at']").first
    handle.scroll_into_view_if_needed(timeout=60_000)
    before, alt = picture.get_attribute("src"), picture.get_attribute("alt")
    first = float(handle.get_attribute("aria-valuenow")) == 0
    handle.focus()
    page.keyboard.press("ArrowRight" if first else "ArrowLeft")
    wait_for(lambda: picture.get_attribute("src") != before, 60, "the picture has not changed")
    assert picture.get_attribute("alt") != alt


def photograph(page, name: str) -> None:
    """The notebook for a person, at desktop and phone width, if UMAE_SCREENSHOTS names a folder."""
    folder = os.environ.get("UMAE_SCREENSHOTS")
    if not folder:
        return
    page.keyboard.press("Control+b")  # the list of files would leave no room on a phone
    for width, kind in ((1400, "desktop"), (390, "phone")):
        page.set_viewport_size({"width": width, "height": 6000})
        page.locator(".jp-WindowedPanel-outer").first.evaluate("panel => panel.scrollTop = 0")
        page.wait_for_timeout(1500)  # JupyterLab draws cells when they come into sight
        page.screenshot(path=Path(folder) / f"{name}_{kind}.png")


@pytest.mark.quick
def test_the_first_page_is_00_start_and_the_whole_repository_can_be_reached(window, lab):
    page = opened(window, lab, "notebooks/00_start.ipynb")
    names = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert "00_start.ipynb" in names
    page.locator(".jp-BreadCrumbs-home").click()
    page.wait_for_selector(".jp-DirListing-item[title*='README.md']", timeout=30_000)
    assert page.locator(".jp-toast-message, .Toastify__toast").all_inner_texts() == []
    assert page.locator(".jp-Dialog").count() == 0
    close(page, lab)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.quick if n in QUICK else ()) for n in NAMES]
)
def test_run_all_ends_without_an_error(window, lab, copy, name, record_property):
    path = copy / "notebooks" / f"{name}.ipynb"
    page = opened(window, lab, f"notebooks/{name}.ipynb")
    record_property("run_all", f"{name} {run_all(page, lab, path):.0f}")
    assert errors(path) == []
    if "widgets.explore(" in path.read_text():
        move_a_slider(page)
        outputs = [output.get("data", {}) for cell in code_cells(path) for output in cell.outputs]
        live = [data for data in outputs if "application/vnd.jupyter.widget-view+json" in data]
        assert all("image/png" in data for data in live)  # the saved page keeps a figure
        assert live
    photograph(page, name)
    close(page, lab)
