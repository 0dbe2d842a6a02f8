"""Exercises of notebooks/06_lambda_ablation.ipynb."""

from typing import Any

from lib.data import load
from lib.evaluate import evaluate
from lib.losses import cosine_weight
from lib.presets import resolve
from lib.runs import open_run
from lib.train import train_all
from solutions.runs import runs_of


def exercise_1(epochs: int = 8) -> dict[str, Any]:
    """Interrupt the cell that trains, and execute the notebook again. What does it print?

    Answer: how many of the runs were finished before. A run is found again by its settings and its
    images, so finished runs are not trained again, and an interrupted one goes on from its last
    checkpoint. Here the first of three runs is trained; then the whole sweep is asked for.
    """
    configs = [resolve(epochs=epochs, lam=lam, seed=7) for lam in (0.0, 0.001, 0.1)]
    data = load(**configs[0].data_fields)

    def finished() -> int:
        return sum(open_run(c, data.fingerprint).result is not None for c in configs)

    train_all(configs[:1], data, jobs=1)
    before = finished()
    train_all(configs, data, jobs=1)
    return {"finished before": before, "finished after": finished(), "of": len(configs)}


def exercise_2(epochs: int = 8, lams: tuple[float, ...] = (0.0, 0.001, 0.1)) -> dict[str, Any]:
    """Set `pool` and `feature` to "avg". Does the optimum move?

    Answer: see which coefficient has the highest validation accuracy in each column. With one seed
    the difference between two coefficients can be noise: only the notebook's intervals over several
    seeds can say that an optimum moved.
    """
    found = {}
    for pool in ("token", "avg"):
        runs, data = runs_of("lam", list(lams), epochs=epochs, pool=pool)
        best = {lam: evaluate(run, "sgd", pool, data=data) for lam, run in runs.items()}
        found[pool] = {lam: round(value["validation"], 1) for lam, value in best.items()}
    return found


def exercise_3(dim: int = 64) -> dict[str, Any]:
    """Why does `released` with 0.064 have the weight of `spectral` with 0.001 at a width of 64?

    Answer: the spectral form is D times the mean squared cosine, the released form is the mean
    itself. So a spectral coefficient counts D times: 64 times 0.001 is 0.064.
    """
    pairs = {"spectral": 0.001, "released": 0.064}
    return {form: cosine_weight(lam, form, dim) for form, lam in pairs.items()}
