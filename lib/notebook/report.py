"""Run folders: where a run lives, who is working on it, and files that are never seen half-written."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lib.presets import Config
from lib.runs.folder import outputs, run_name


def report_folder(notebook: str, config: Config, **parameters: Any) -> Path:
    """Where a notebook writes its figures and numbers: its own folder for every config and set of parameters."""
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[
        :6
    ]
    return outputs() / notebook / f"{run_name(config)}-{key}"
