"""From the study's records to the generated blocks of docs/results.md and README.md.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the text around it is written
by hand and holds no number of the study.
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib.presets import REPO
from lib.runs.files import read_json, weights_digest, write_atomic, write_json
from study import audits, claims, coefficients, explanation, tables
from study.plan import OBJECTIVES, SCRATCH
from study.tables import Record
from study.variant_gains import variants_block

RECORDS = REPO / "outputs" / "reference" / "study"
RUNS = REPO / "outputs" / "reference" / "runs"
PAGES = (REPO / "docs" / "results.md", REPO / "README.md")


def read_records(folder: Path = RECORDS) -> list[Record]:
    """Every committed record, by part."""
    found: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        found += json.loads(path.read_text())
    return found


def collect(source: Path, target: Path = RECORDS) -> None:
    """The records of single runs in `source`, as one file a part in `target`.

    A record that `target` holds already stays, unless `source` measured the same run: the runs of
    a study come from several machines. A seed of the 40-epoch runs counts when all objectives are
    measured, so that every mean of a table is over the same seeds.
    """
    found = [json.loads(path.read_text()) for path in sorted(source.glob("*.json"))]
    everything = {identity(record): record for record in [*read_records(target), *found]}
    parts: dict[str, list[Record]] = {}
    for record in everything.values():
        if record["part"] != "objectives" or _has_all_objectives(record, [*everything.values()]):
            parts.setdefault(record["part"], []).append(_rounded(record))
    for part, records in parts.items():
        ordered = sorted(records, key=lambda r: (r["objective"] != SCRATCH, r["run"]))
        write_json(target / f"{part.replace(' ', '_')}.json", ordered)


def identity(record: Record) -> str:
    """What a record is about: part, data, objective, seed and settings, as text."""
    keys = ("part", "data", "objective", "seed", "fields")
    return json.dumps({k: record[k] for k in keys}, sort_keys=True)


def _has_all_objectives(record: Record, records: Sequence[Record]) -> bool:
    key = ("part", "data", "seed")
    own = {r["objective"] for r in records if all(r[k] == record[k] for k in key)}
    return own >= set(OBJECTIVES)


EXPORT = ("encoder/config.json", "encoder/model.safetensors")
KEPT = ("config.json", "result.json", "metrics.jsonl", "model.safetensors", *EXPORT)


def keep_runs(source: Path, records: Sequence[Record], target: Path = RUNS) -> None:
    """Copies the MAE and the U-MAE run of seed 0 of every data set, and writes a manifest.

    A copied folder under outputs/runs is a finished run like any other, without its snapshots. What
    is committed stays: another machine trains other weights under the same name.
    """
    wanted = {
        r["run"]: f"python -m study --data {r['data']}=PATH --part objectives"
        for r in records
        if (r["part"], r["seed"]) == ("objectives", 0) and r["objective"] in ("MAE", "U-MAE")
    }
    manifest = read_json(target / "manifest.json")
    for name, command in sorted(wanted.items()):
        folder = source / name
        if name in manifest or not (folder / "result.json").is_file():
            continue
        (target / name / "encoder").mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copyfile(folder / file, target / name / file)
        record = read_json(folder / "config.json")
        origin = {k: record[k] for k in ("commit", "time", "device")} | {"command": command}
        manifest[name] = {**origin, "sha256": weights_digest(folder / "model.safetensors")}
    if manifest:
        write_json(target / "manifest.json", manifest)


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: accuracies and spectra need no more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


BLOCKS: dict[str, Callable[[Sequence[Record]], str]] = {
    "study summary": tables.summary_block,
    "study checks": explanation.checks_block,
    "study explanation": explanation.explanation_block,
    "study steps": explanation.steps_block,
    "study budget": explanation.budget_block,
    "study baselines": tables.baselines_block,
    "study claims": claims.study_block,
    "audit pages": audits.audits_block,
    "earlier claims": claims.earlier_block,
    "theory claims": claims.theory_block,
    "study objectives": tables.objectives_block,
    "study representation": tables.representation_block,
    "study coefficients": coefficients.coefficients_block,
    "study mean token": coefficients.mean_token_block,
    "study variants": variants_block,
    "study mask ratios": tables.mask_ratios_block,
    "study finetuning": tables.finetuning_block,
    "study along training": tables.along_block,
    "study origin": tables.origin_block,
}


def filled(page: str, records: Sequence[Record]) -> str:
    """The page with every generated block made anew from the records."""
    for name, make in BLOCKS.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        if re.search(pattern, page, re.DOTALL):
            text = make(records)
            page = re.sub(
                pattern, lambda m, text=text: m[1] + text + "\n" + m[2], page, flags=re.DOTALL
            )
    return page


def write_pages(records: Sequence[Record]) -> None:
    for path in PAGES:
        write_atomic(path, filled(path.read_text(), records).encode())
