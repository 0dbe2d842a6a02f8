"""The runs that notebooks compare, the images they look at, and coefficients in one unit."""

import pytest
import torch

from lib.errors import InputError
from lib.losses import cosine_weight
from lib.notebook.coefficients import coefficient_table
from lib.notebook.pairs import objective, pair_configs
from lib.notebook.parameters import check_choices, config_fields
from lib.notebook.samples import affordable, balanced_ids
from lib.presets import resolve


def test_a_pair_differs_in_the_term_alone():
    configs = pair_configs("digits-vit-nano", {"depth": 1}, [0, 3], epochs=2)
    assert list(configs) == [("MAE", 0), ("U-MAE", 0), ("MAE", 3), ("U-MAE", 3)]
    for (name, seed), config in configs.items():
        assert objective(config) == name and config.seed == seed
        assert (config.depth, config.epochs) == (1, 2)
    assert configs["U-MAE", 0].lam == resolve("digits-vit-nano").lam


@pytest.mark.parametrize(
    "given, message",
    [
        ({"seeds": []}, "seeds must name at least one seed"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [0], "lam": 0.0}, "lam must be above 0"),
        ({"seeds": [0], "overrides": {"seed": 1}}, "overrides sets lam or seed"),
        ({"seeds": [0], "overrides": {"epochs": 3}, "epochs": 2}, "give it once"),
        ({"seeds": [0], "overrides": {"epoch": 3}}, "unknown parameter 'epoch'"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        pair_configs("digits-vit-nano", given.pop("overrides", {}), **given)


def test_overrides_and_named_fields_together():
    assert config_fields({"depth": 1}, epochs=2, data=None) == {"epochs": 2, "depth": 1}


def test_a_list_of_choices():
    check_choices("protocols", ["sgd"], ["sgd", "knn"])
    with pytest.raises(InputError, match="protocols must not be empty"):
        check_choices("protocols", [], ["sgd"])
    with pytest.raises(InputError, match="unknown 'sdg', did you mean 'sgd'"):
        check_choices("protocols", ["sdg"], ["sgd", "knn"])


def test_balanced_ids():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 9)
    ids = balanced_ids(labels, 3, seed=0)
    assert labels[ids].bincount().tolist() == [3, 2, 3]
    assert len(ids.unique()) == len(ids)
    assert labels[balanced_ids(labels, 1, 0, classes=[2])].tolist() == [2]


def test_no_more_images_than_memory_holds():
    assert affordable(500, 10, 64) == 500
    assert 10 * 224 * 224 * 3 * affordable(500, 10, 224 * 224 * 3, limit=2**28) <= 2**28
    assert affordable(500, 1000, 10**9) == 1


def test_equal_coefficients_have_equal_weights():
    config = resolve("digits-vit-nano", lam=0.001)
    table = coefficient_table(config)
    run, eq9 = table.iloc[0], table.iloc[-1]
    assert float(run["weight on mean cos^2"]) == pytest.approx(0.064)
    for width in (64, 192, 768, 1024):
        same = float(run[f"spectral lam, D={width}"])
        assert cosine_weight(same, "spectral", width) == pytest.approx(0.064, rel=0.05)
    assert set(eq9) == {"-"}
    assert float(table.loc["authors' code: lambda 0.01, 8 device(s)"].iloc[0]) == 0.0013
