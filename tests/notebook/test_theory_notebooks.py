"""The notebooks 09: their form, their parameters, and one execution with small settings."""

import json
import os
from pathlib import Path

import nbformat
import papermill
import pytest

from lib.errors import InputError
from lib.notebook.parameters import read_parameters
from lib.presets import REPO

SMALL = {
    "09a_graph": {"patch_rows": 4, "patch_cols": 4, "splits": 2},
    "09b_trained_model": {"epochs": 2, "inverse_steps": 20, "train_images": 256},
    "09c_uniformity": {"epochs": 2, "steps": 300},
    "09_theory": {},
}
CLAIMS = {"09a_graph": 17, "09b_trained_model": 9, "09c_uniformity": 2}
VERDICTS = {"holds", "holds as corrected", "does not hold"}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4)


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One outputs folder, so that 09c finds the runs of 09b."""
    return tmp_path_factory.mktemp("theory")


@pytest.fixture(autouse=True)
def outputs(shared, monkeypatch):
    monkeypatch.setenv("UMAE_OUTPUTS", str(shared / "outputs"))
    paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return shared / "outputs"


def execute(name: str, shared: Path, **parameters) -> str:
    """Runs a notebook from a foreign folder; returns what its cells printed."""
    target = shared / f"{name}.ipynb"
    papermill.execute_notebook(
        REPO / "notebooks" / f"{name}.ipynb",
        target,
        SMALL[name] | parameters,
        cwd=shared,
        progress_bar=False,
        start_timeout=120,
    )
    cells = nbformat.read(target, 4).cells
    return "".join(out.get("text", "") for c in cells if c.cell_type == "code" for out in c.outputs)


@pytest.fixture(scope="module")
def done(shared):
    """Executes a notebook once a module: (its JSON, its folder, what it printed)."""
    kept = {}

    def result(name):
        if name not in kept:
            text = execute(name, shared)
            (file,) = (shared / "outputs" / name).glob("*/theory.json")
            kept[name] = json.loads(file.read_text()), file.parent, text
        return kept[name]

    return result


# --- form ---


@pytest.mark.parametrize("name", SMALL)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) <= 30
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# 09")
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert tagged == code(name)[:1]
    assert tagged[0].source.startswith("# parameters\n")
    assert code(name)[1].source.endswith("params = read_parameters(In, globals())")


@pytest.mark.parametrize("name", SMALL)
def test_cells_are_short_and_have_no_outputs(name):
    for cell in code(name):
        lines = cell.source.splitlines()
        assert len(lines) <= 20
        assert max(map(len, lines)) <= 100
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", CLAIMS)
def test_length_of_the_text(name):
    text = [c.source for c in read(name).cells if c.cell_type == "markdown"]
    assert 800 <= sum(len(source.split()) for source in text) <= 1500


@pytest.mark.parametrize("name", SMALL)
def test_parameters_show_in_papermills_help_and_can_be_read(name):
    source = code(name)[0].source
    values: dict = {}
    exec(source, values)
    params = read_parameters(["", source], values)
    assert list(papermill.inspect_notebook(REPO / "notebooks" / f"{name}.ipynb")) == list(params)
    assert set(SMALL[name]) <= set(params)
    if name in ("09b_trained_model", "09c_uniformity"):
        assert {"preset", "data", "data_dir", "epochs", "lam", "overrides"} <= set(params)


@pytest.mark.parametrize("name", SMALL)
def test_an_unknown_parameter_is_refused(name):
    source = code(name)[0].source
    values: dict = {}
    exec(source, values)
    with pytest.raises(InputError, match="unknown parameter 'sead'"):
        read_parameters(["", source, "# Parameters\nsead = 1\n"], values)


# --- what they compute ---


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_a_verdict(name, done):
    found, _, text = done(name)
    assert len(found["claims"]) == CLAIMS[name]
    assert sum(found["counts"].values()) == CLAIMS[name]
    assert {claim["verdict"] for claim in found["claims"]} <= VERDICTS
    assert "what we saw" in text


@pytest.mark.parametrize("name", CLAIMS)
def test_figures_are_there(name, done):
    _, folder, _ = done(name)
    figures = sorted(folder.glob("*.png"))
    assert figures
    for figure in figures:
        assert figure.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def verdicts(found: dict) -> dict[str, str]:
    return {claim["claim"]: claim["verdict"] for claim in found["claims"]}


def test_the_graph_has_the_verdicts_that_are_proved(done):
    found = verdicts(done("09a_graph")[0])
    assert found["the graph is directed unless rho = 1/2"] == "holds"
    assert found["the labelling error alpha rises with rho"] == "holds"
    assert found["connectivity lambda rises with rho"] == "holds as corrected"
    assert found["L_U-MAE <= 2 L_mf + 2 eps + C"] == "holds as corrected"
    assert found["error <= O(sqrt(2 alpha)/lambda)"] == "holds as corrected"


def test_the_trained_model_has_the_verdicts_that_are_proved(done):
    found = verdicts(done("09b_trained_model")[0])
    assert found["L_rec <= 2E|gf - gf_g|^2 + 2 eps"] == "holds"
    assert found["Eq. 7 as printed, one C for all feature scales"] != "holds"


def test_uniformity_has_the_verdicts_that_are_proved(done):
    assert set(verdicts(done("09c_uniformity")[0]).values()) == {"holds as corrected"}


def test_the_pointer_prints_where_to_go(shared):
    text = execute("09_theory", shared, preset="cifar10-vit-micro")
    assert "notebooks/09b_trained_model.ipynb out.ipynb -p preset cifar10-vit-micro" in text
