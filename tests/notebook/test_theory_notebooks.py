"""The notebooks 09: one execution with small settings, and the verdicts that are proved."""

import pytest
from support.notebooks import execute, printed

pytestmark = pytest.mark.usefixtures("shared_outputs")
CLAIMS = {"09a_graph": 17, "09b_trained_model": 8, "09c_uniformity": 2}
VERDICTS = {"holds", "fails as printed, holds as corrected", "does not hold"}


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
    assert found["connectivity lambda rises with rho"] == "fails as printed, holds as corrected"
    assert found["L_U-MAE <= 2 L_mf + 2 eps + C"] == "fails as printed, holds as corrected"
    assert found["error <= O(sqrt(2 alpha)/lambda)"] == "fails as printed, holds as corrected"


def test_the_trained_model_has_the_verdicts_that_are_proved(done):
    found = verdicts(done("09b_trained_model")[0])
    assert found["L_rec <= 2E|gf - gf_g|^2 + 2 eps"] == "holds"
    assert found["Eq. 7 as printed, one C for all feature scales"] != "holds"


def test_uniformity_has_the_verdicts_that_are_proved(done):
    found = verdicts(done("09c_uniformity")[0])
    assert set(found.values()) == {"fails as printed, holds as corrected"}


def test_the_pointer_prints_where_to_go(shared):
    text = printed(execute("09_theory", shared, preset="cifar10-vit-micro"))
    assert "notebooks/09b_trained_model.ipynb out.ipynb -p preset cifar10-vit-micro" in text
