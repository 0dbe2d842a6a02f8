"""What several solutions need: trained pairs of MAE and U-MAE on a preset."""

from typing import Any

from lib.data import Dataset, load
from lib.notebook.pairs import pair_configs
from lib.presets import resolve
from lib.runs.folder import Run
from lib.train import train_all


def pair(**fields: Any) -> tuple[dict[str, Run], Dataset]:
    """{"MAE": run, "U-MAE": run} of the digits preset with these fields, and the images."""
    configs = pair_configs("digits-vit-nano", {}, [0], fields.pop("lam", None), **fields)
    data = load(**configs["MAE", 0].data_fields)
    trained = train_all(list(configs.values()), data, jobs=1)
    return {name: run for (name, _), run in zip(configs, trained, strict=True)}, data


def runs_of(name: str, values: list[Any], **fields: Any) -> tuple[dict[Any, Run], Dataset]:
    """One run of the digits preset for each value of the field `name`, and the images."""
    configs = [resolve(**{**fields, name: value}) for value in values]
    data = load(**configs[0].data_fields)
    return dict(zip(values, train_all(configs, data, jobs=1), strict=True)), data
