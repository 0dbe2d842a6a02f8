"""Where a notebook writes its figures and numbers."""

from pathlib import Path
from typing import Any

from lib.presets import Config
from lib.runs.cache import cache_key
from lib.runs.folder import outputs, run_name


def report_folder(notebook: str, config: Config, fingerprint: str, **parameters: Any) -> Path:
    """outputs/<notebook>/<run name>-<hash6>: one for every config, images and parameters."""
    key = cache_key(parameters)[:6]
    return outputs() / notebook / f"{run_name(config, fingerprint)}-{key}"
