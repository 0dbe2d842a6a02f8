"""Exercises of notebooks/09a_graph.ipynb."""

from math import comb
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from lib.theory.bounds import bayes_errors, bounds
from lib.theory.graph import build_graph
from lib.theory.population import Population, quantise


def _population(vocabulary: int, count: int | None, patch: tuple[int, int] = (4, 2)) -> Population:
    digits = load_digits()
    return quantise(digits.images[:count], digits.target[:count], patch, vocabulary)


def exercise_1(count: int | None = None, visible: int = 7) -> dict[str, Any]:
    """Set `vocabulary` to 64. What happens to lambda, and is the printed formula below the error?

    Answer: with more tokens, images share fewer views. So lambda gets smaller (the graph is less
    connected) and the labelling error alpha_1 gets smaller too. At rho = 1/8 seven of eight patches
    are visible, and alpha_1, from x1, is far smaller than alpha_2, from the single patch of x2. The
    printed formula contains alpha_1 only: it can be below the true error, which no bound may be.
    """
    found = {}
    for vocabulary in (8, 64):
        population = _population(vocabulary, count)
        graph = build_graph(population, visible, "product")
        alpha1, alpha2 = bayes_errors(graph, population.labels)
        (bound,) = bounds(graph, population.labels, [10])
        found[f"vocabulary {vocabulary}"] = {
            "lambda_11": round(1 - bound.sigma, 3),
            "alpha_1": round(alpha1, 3),
            "alpha_2": round(alpha2, 3),
            "printed formula": round(bound.printed, 3),
            "error": round(bound.error, 3),
        }
    return found


def exercise_2(patches: int = 16, limit: int = 2000) -> dict[str, Any]:
    """With patches of 2x2 pixels (16 of them), which mask ratios would fit into memory?

    Answer: those near 0 and near 1. An image has binom(16, s) views with s visible patches: 12,870
    at s = 8, but only 120 at s = 2 or s = 14. Times 1,797 images this decides the size of the
    graph. The list has the ratios with at most `limit` masks.
    """
    masks = {s: comb(patches, s) for s in range(1, patches)}
    fitting = [1 - s / patches for s, count in masks.items() if count <= limit]
    return {"masks by visible patches": masks, "ratios that fit": sorted(fitting)}


def exercise_3(count: int | None = 200) -> dict[str, Any]:
    """Prove that the product graph at rho = 1/2 is the same-ratio graph, and check it.

    Answer: the product graph joins x1, the visible part under a random half m, with x2, the removed
    part under an independent random half m'. The removed part under m' is the visible part under
    the complement of m'. The complement of a uniformly drawn half is a uniformly drawn half. So x2
    has the distribution of a visible view that is drawn independently: this is the same-ratio
    graph. The check compares the sorted weights of both, since their views may be numbered
    differently.
    """
    population = _population(8, count)
    half = population.tokens.shape[1] // 2
    product, same = (np.sort(build_graph(population, half, f).weights().data) for f in FORMS)
    equal = len(product) == len(same) and bool(np.allclose(product, same, atol=1e-15))
    return {"edges": (len(product), len(same)), "equal weights": equal}


FORMS = ("product", "same")
