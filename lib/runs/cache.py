"""Results that are kept: each carries what decided it, and one whose inputs changed is not used."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.runs.files import read_json, write_json


def cache_key(inputs: dict[str, Any]) -> str:
    """Sixteen hex digits of everything that decides a result (JSON types)."""
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(
    folder: Path, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of `compute` for `inputs`, from folder/<key>.json if it is there.

    `inputs` names everything that decides the result: settings, the digest of the weights, the
    fingerprint of the images. Other inputs give another file: nothing is overwritten. The file
    holds the inputs beside the result, so that a person can see what it belongs to.
    """
    path = folder / f"{cache_key(inputs)}.json"
    kept = read_json(path)
    if kept.get("inputs") == json.loads(json.dumps(inputs)):
        return kept
    write_json(path, {"inputs": inputs, **compute()})
    return read_json(path)
