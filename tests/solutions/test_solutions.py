"""Every exercise of a notebook has a solution, and what its answer says is what it computes."""

import inspect
import re

import nbformat
import pytest

from lib.presets import REPO
from solutions.__main__ import NAMES, load, main

SHORT = {"epochs": 2}
SETTINGS = {  # of the exercises that train; the others take no time
    ("00_start", 3): SHORT,
    ("01_masking", 2): {"images": 30},
    **{("02_pretrain", k): SHORT for k in (1, 2, 3)},
    **{("03_linear_probe", k): SHORT for k in (1, 2)},
    ("03_linear_probe", 3): {**SHORT, "budgets": (1, 10)},
    ("04_finetune", 1): {**SHORT, "budget": 1, "fractions": (1.0,)},
    ("04_finetune", 2): {**SHORT, "budget": 1},
    ("04_finetune", 3): {**SHORT, "budgets": (1,)},
    ("05_tsne", 1): {"per_class": 15, "perplexities": (5, 30)},
    ("05_tsne", 3): SHORT,
    ("06_lambda_ablation", 1): {"epochs": 1},
    ("06_lambda_ablation", 2): {**SHORT, "lams": (0.0, 0.001)},
    **{("07_training_curve", k): SHORT for k in (1, 3)},
    ("07_training_curve", 2): {"epochs": 4},
    ("08_mask_ratio", 2): SHORT,
    ("09a_graph", 1): {"count": 200},
    ("09b_trained_model", 1): {**SHORT, "steps": (5, 30), "floor_steps": 30},
    ("09b_trained_model", 2): {**SHORT, "steps": 5},
    ("09b_trained_model", 3): {**SHORT, "steps": 5},
    ("09c_uniformity", 1): {"steps": 500},
    ("09c_uniformity", 2): {**SHORT, "weight": 0.64},
    ("10_table1", 1): {**SHORT, "seeds": (0, 1)},
    ("10_table1", 2): SHORT,
    ("10_table1", 3): {**SHORT, "preset": "digits-vit-nano"},
    ("11_audit", 2): SHORT,
    ("11_audit", 3): {**SHORT, "budgets": (1, 10)},
}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """solved(name, number) -> what the solution computes, once, in one outputs folder."""
    folder, kept = tmp_path_factory.mktemp("solutions"), {}

    def solve(name: str, number: int):
        if (name, number) not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("UMAE_OUTPUTS", str(folder))
                function = getattr(load(name), f"exercise_{number}")
                kept[name, number] = function(**SETTINGS.get((name, number), {}))
        return kept[name, number]

    return solve


def exercises(name: str) -> list[str]:
    cells = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4).cells
    (text,) = [c.source for c in cells if "**Exercises.**" in c.source]
    return re.split(r"\n\d\. ", text.split("**Exercises.**")[1].split("\n\n")[0])[1:]


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_a_hint_and_a_solution_and_the_notebook_links_to_it(name):
    text = (REPO / "notebooks" / f"{name}.ipynb").read_text()
    assert f"(../solutions/{name}.py)" in text
    found = exercises(name)
    assert len(found) == 3
    for k, exercise in enumerate(found, 1):
        assert "*Hint:*" in exercise
        answer = inspect.getdoc(getattr(load(name), f"exercise_{k}"))
        assert "\n\nAnswer: " in answer


def test_every_notebook_with_exercises_has_solutions():
    notebooks = {path.stem for path in (REPO / "notebooks").glob("*.ipynb")}
    assert set(NAMES) == notebooks - {"09_theory"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_runs(name, number, solved):
    assert solved(name, number)


def test_the_answers_about_masks(solved):
    same, other = solved("01_masking", 1).values()
    assert same == (6, 6) and other == (0, 4)
    accuracy = list(solved("01_masking", 2)["accuracy"].values())
    assert accuracy == sorted(accuracy, reverse=True)
    nearest = solved("01_masking", 3)
    for kind in ("same class", "other class"):
        assert nearest["blocks"][kind] > nearest["single patches"][kind]


def test_the_answers_about_forms_and_places_of_the_term(solved):
    forms = solved("02_pretrain", 1)
    assert forms["spectral"]["rank"] > forms["euclidean"]["rank"]
    assert forms["spectral"]["spectral"] < forms["euclidean"]["spectral"]
    none, token, mean = solved("02_pretrain", 2).values()
    rises = [("rank of the class token", token, mean), ("rank of the mean", mean, token)]
    for key, under, elsewhere in rises:
        assert under[key] > max(elsewhere[key], none[key])
    loss = solved("02_pretrain", 3)
    assert loss[10.0] > loss[0.0]
    ranks = solved("09c_uniformity", 2)
    assert ranks["spectral"] > ranks["euclidean"]


def test_the_answers_about_maps_and_chance(solved):
    chance = solved("05_tsne", 2)["shuffled"]
    assert abs(chance["purity"] - 0.1) < 0.05 and chance["silhouette"] < 0
    assert solved("05_tsne", 2)["true labels"]["silhouette"] > 0


def test_the_answers_about_sweeps(solved):
    found = solved("06_lambda_ablation", 1)
    assert (found["finished before"], found["finished after"], found["of"]) == (1, 3, 3)
    spectral, released = solved("06_lambda_ablation", 3).values()
    assert spectral == pytest.approx(released)


def test_the_answer_about_the_figure_of_gains(solved):
    gains = solved("00_start", 2)
    first, *_, last = gains
    assert (first, last) == ("sgd", "lbfgs")
    assert gains["sgd"] > 0 > gains["lbfgs"]


def test_the_answers_about_nearest_views(solved):
    few, many = (found["curve"] for found in solved("08_mask_ratio", 1).values())
    assert few != many and min([*few.values(), *many.values()]) > 0
    pixels, normalised = (found["curve"] for found in solved("08_mask_ratio", 3).values())
    assert normalised[0.0] > pixels[0.0]


def test_the_answers_about_the_graph(solved):
    small, large = solved("09a_graph", 1).values()
    assert large["lambda_11"] < small["lambda_11"] and large["alpha_1"] <= small["alpha_1"]
    assert all(found["alpha_1"] < found["alpha_2"] for found in (small, large))
    assert 0.5 not in solved("09a_graph", 2)["ratios that fit"]
    found = solved("09a_graph", 3)
    assert found["equal weights"] and found["edges"][0] > 0


def test_the_answers_about_uniformity(solved):
    found = solved("09c_uniformity", 1)
    assert found["euclidean"]["length of the mean"] < 0.1
    assert found["euclidean"]["dimensions in use"] < 1.3 < found["spectral"]["dimensions in use"]
    identity = solved("09c_uniformity", 3)
    assert identity["mean cos^2"] == pytest.approx(identity["1 / participation ratio"])
    assert identity["mean cos^2"] >= identity["1 / (D - 1)"]


def test_the_answers_about_baselines_and_whitening(solved):
    found = solved("11_audit", 1)
    assert found["lbfgs"] > found["sgd"] > found["chance"]
    pages = solved("11_audit", 2)
    assert pages["whitened"]["condition number"] < 2 < pages["plain"]["condition number"]
    assert pages["whitened"]["gap in points"] < pages["plain"]["gap in points"]


def test_one_seed_can_tell_nothing(solved):
    assert solved("10_table1", 1)["1 seeds"]["verdict"] == "cannot tell"


def test_the_command_prints_an_answer_and_its_numbers(capsys):
    main(["06_lambda_ablation", "3"])
    printed = capsys.readouterr().out
    assert "Answer: the spectral form is D times" in printed and "released: 0.064" in printed
    main([])
    assert "02_pretrain: Exercises of notebooks/02_pretrain.ipynb." in capsys.readouterr().out
