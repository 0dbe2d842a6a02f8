"""`make lab` in Chromium: it opens on 00_start, and Run All ends without an error everywhere."""

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
PATIENCE = 900  # seconds for one notebook


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
    make = ["make", "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}", f"LAB={options}"]
    outputs = tmp_path_factory.mktemp("outputs")
    environment = {**os.environ, "PYTHONPATH": str(copy), "UMAE_OUTPUTS": str(outputs)}
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
        time.sleep(1)


def opened(browser, address: str, path: str):
    """A page on which the notebook is open and its kernel ready."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/tree/{path}?reset", wait_until="load")
    page.wait_for_selector(".jp-NotebookPanel:visible .jp-Cell", timeout=120_000)
    page.wait_for_selector(".jp-NotebookPanel:visible [data-status='idle']", timeout=180_000)
    return page


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def errors(path: Path) -> list[str]:
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    return [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]


def is_done(page, path: Path) -> bool:
    """Saves, and says whether the file on disk has run to its end or has stopped."""
    page.keyboard.press("Control+s")
    time.sleep(1)
    return bool(errors(path)) or all(cell.execution_count for cell in code_cells(path))


def test_the_first_page_is_00_start_and_the_whole_repository_can_be_reached(browser, lab):
    page = opened(browser, lab, "notebooks/00_start.ipynb")
    names = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert "00_start.ipynb" in names
    page.locator(".jp-BreadCrumbs-home").click()
    page.wait_for_selector(".jp-DirListing-item[title*='README.md']", timeout=30_000)
    page.close()


def run_all(page, path: Path) -> float:
    """Seconds of Run All Cells; fails if the notebook has not ended in time."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    started = time.monotonic()
    wait_for(lambda: is_done(page, path), PATIENCE, f"{path.stem} has not ended")
    return time.monotonic() - started


@pytest.mark.parametrize("name", NAMES)
def test_run_all_ends_without_an_error(browser, lab, copy, name):
    path = copy / "notebooks" / f"{name}.ipynb"
    page = opened(browser, lab, f"notebooks/{name}.ipynb")
    print(f"{name}: Run All took {run_all(page, path):.0f} s")
    folder = os.environ.get("UMAE_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")
    page.close()
    assert errors(path) == []


@pytest.mark.parametrize("name", ["01_masking", "02_pretrain"])
def test_a_slider_moves_and_the_picture_changes(browser, lab, copy, name):
    path = copy / "notebooks" / f"{name}.ipynb"
    page = opened(browser, lab, f"notebooks/{name}.ipynb")
    run_all(page, path)
    handle = page.locator(".jp-OutputArea .noUi-handle").first
    picture = page.locator(".jp-OutputArea img[alt^='Figure at']").first
    handle.scroll_into_view_if_needed(timeout=60_000)
    before, alt = picture.get_attribute("src"), picture.get_attribute("alt")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    wait_for(lambda: picture.get_attribute("src") != before, 60, "the picture has not changed")
    assert picture.get_attribute("alt") != alt
    page.close()
    saved = [output.get("data", {}) for cell in code_cells(path) for output in cell.outputs]
    live = [data for data in saved if "application/vnd.jupyter.widget-view+json" in data]
    assert any("image/png" in data for data in live)  # the saved page keeps a figure
