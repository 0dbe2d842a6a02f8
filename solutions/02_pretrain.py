"""Exercises of notebooks/02_pretrain.ipynb."""

from typing import Any

from solutions.runs import pair, runs_of


def exercise_1(epochs: int | None = None, lam: float = 0.01) -> dict[str, Any]:
    """Set `uniformity` to "euclidean". What happens to the rank, and to the spectral curve?

    Answer: the spectral form asks for all directions and gets a high rank, with a spectral value
    near 1. The Euclidean form only asks for a mean of zero. So the rank stays lower, and the
    spectral value higher, although the coefficient is the same.
    """
    forms = ["spectral", "euclidean"]
    runs, _ = runs_of("uniformity", forms, epochs=epochs, lam=lam)
    return {
        form: {
            "rank": round(run.result["test_rank_token"], 1),
            "spectral": round(run.metrics()[-1]["validation_spectral_token"], 2),
        }
        for form, run in runs.items()
    }


def exercise_2(epochs: int | None = None, lam: float = 0.01) -> dict[str, Any]:
    """Set `pool` to "avg". Which feature changes: the one under the term, the other, or both?

    Answer: the rank of the feature that is under the term rises most. The other one can follow,
    because class token and patch tokens come from the same blocks, but nothing makes it.
    """
    runs, _ = runs_of("pool", ["token", "avg"], epochs=epochs, lam=lam)
    mae, _ = pair(epochs=epochs)
    shown = {"no term": mae["MAE"], "on the class token": runs["token"], "on the mean": runs["avg"]}
    keys = {"rank of the class token": "test_rank_token", "rank of the mean": "test_rank_avg"}
    return {
        name: {text: round(run.result[key], 1) for text, key in keys.items()}
        for name, run in shown.items()
    }


def exercise_3(epochs: int | None = None) -> dict[str, Any]:
    """Raise `lam` until the reconstruction becomes visibly worse.

    Answer: small coefficients cost almost nothing. With a large one the uniformity term outweighs
    the reconstruction, and the loss of the latter rises. Where that begins depends on the form: its
    unit decides how large "large" is.
    """
    runs, _ = runs_of("lam", [0.0, 0.001, 0.1, 10.0], epochs=epochs)
    return {lam: round(run.result["test_reconstruction"], 4) for lam, run in runs.items()}
