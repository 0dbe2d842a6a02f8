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


def kept_path(folder: Path, settings: dict[str, Any], content: dict[str, Any], kind: str) -> Path:
    """folder/<key of the settings>-<key of the content>.<kind>, where a result is kept.

    `settings` is what a person asks for (a protocol, a seed, ...). `content` is what it is
    measured on: digests of weights, fingerprints of images, versions of the code.
    """
    return folder / f"{cache_key(settings)}-{cache_key(content)[:8]}.{kind}"


def explain_new_result(path: Path, what: str) -> None:
    """Prints a line if results of the same settings are kept whose content was another."""
    settings = path.name.split("-")[0]
    others = [p.name for p in sorted(path.parent.glob(f"{settings}-*{path.suffix}")) if p != path]
    if others:
        print(
            f"{what}: measured anew, since weights, images or code differ from those of "
            f"{', '.join(others)}, which is kept",
            flush=True,
        )


def cached(
    folder: Path,
    what: str,
    settings: dict[str, Any],
    content: dict[str, Any],
    compute: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The result of `compute`, from the file at `kept_path` if it is there.

    Nothing is overwritten: other settings or another content give another file. The file holds
    them as "inputs" beside the result, so that a person can see what it belongs to. `what` names
    the result in the line that says why it is measured again.
    """
    path = kept_path(folder, settings, content, "json")
    inputs = json.loads(json.dumps({**settings, **content}))
    kept = read_json(path)
    if kept.get("inputs") == inputs:
        return kept
    explain_new_result(path, what)
    write_json(path, {"inputs": inputs, **compute()})
    return read_json(path)
