"""`python -m study --data cifar10=PATH --data tiny-imagenet-50=PATH`: trains what is missing.

Runs go in the order of study/plan.py. Several of these processes, on one machine or on many with a
shared $UMAE_OUTPUTS, share the work: a run that another one is training is left to it. A process
that was stopped goes on from its last checkpoint. A run whose record is committed is not trained
again. `--report` trains nothing: it adds the records of this machine, if there are any, to
outputs/reference/study, copies the runs of seed 0 to outputs/reference/runs, and writes the tables
of docs/results.md and README.md.
"""
# PYTHON_ARGCOMPLETE_OK

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from lib.command_line import Parser, run_command
from lib.data import Dataset, load
from lib.errors import InputError, RunBusy
from lib.presets import Config, resolve
from lib.runs import open_run, outputs, write_json
from lib.runs.files import read_json
from lib.train import train
from study.figures import draw
from study.measure import complete, is_complete, measure
from study.plan import OBJECTIVES, PRESETS, SCRATCH, SWEEPS, Planned, plan
from study.report import RECORDS, collect, keep_runs, read_records, write_pages
from study.variants import train_variant

RETRY_SECONDS = 30  # before another look at runs that other processes hold


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("python -m study", __doc__)
    add = partial(parser.option, "what to run")
    data = f"Folder of a data set; repeatable. NAME is one of {', '.join(PRESETS)}. Default: none."
    add("--data", action="append", default=[], metavar="NAME=PATH", help=data)
    parts = list(dict.fromkeys(planned.part for planned in plan()))
    part = f"Only this part of the plan; repeatable. One of {', '.join(parts)}. Default: all."
    add("--part", action="append", choices=parts, metavar="PART", help=part)
    add("--report", action="store_true", help="Write the tables from the records; train nothing.")
    device = "Where to compute: auto, cpu or cuda:N. Default: auto."
    add("--device", default="auto", metavar="TEXT", help=device)
    parser.complete()
    return parser.parse_args(argv)


def data_paths(pairs: list[str]) -> dict[str, str]:
    """{"cifar10": "/path"} from ["cifar10=/path"]; InputError for a name that is not known."""
    paths = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in PRESETS or not path:
            raise InputError(f"--data takes NAME=PATH with a name of {', '.join(PRESETS)}: {pair}")
        paths[name] = path
    return paths


def record_path(planned: Planned, run_name: str) -> Path:
    part = planned.part.replace(" ", "_")
    own = () if planned.objective in OBJECTIVES else (planned.objective.replace(" ", "_"),)
    return outputs() / "study" / f"{'-'.join([part, *own, run_name])}.json"


def config_of(planned: Planned, path: str, device: str) -> Config:
    fields: dict[str, Any] = {"data": f"folder:{path}", "device": device, "seed": planned.seed}
    return resolve(planned.preset, **fields, **planned.fields)


def committed(planned: Planned, run_name: str) -> bool:
    """Whether outputs/reference/study holds a complete record of this very run."""
    same = (planned.part, planned.objective, run_name)
    found = (r for r in read_records() if (r["part"], r["objective"], r["run"]) == same)
    return any(is_complete(record) for record in found)


def measured_in_another_part(planned: Planned, run_name: str) -> dict[str, Any]:
    """The committed record of this run in another sweep, as this part's; {} if there is none."""
    for record in read_records():
        if record["run"] == run_name and {record["part"], planned.part} <= SWEEPS:
            return {**record, "part": planned.part, "fields": planned.fields}
    return {}


def finish(planned: Planned, config: Config, data: Dataset) -> bool:
    """Trains and measures one run if that is missing; False if another process is at it.

    The same network from random weights is finetuned without a pretraining.
    """
    run = open_run(config, data.fingerprint)
    path = record_path(planned, run.folder.name)
    if committed(planned, run.folder.name) or ((own := read_json(path)) and is_complete(own)):
        return True
    if known := measured_in_another_part(planned, run.folder.name):
        write_json(path, known)
        return True
    try:
        if planned.part == "variants":
            run = train_variant(planned.objective, config, data)
        elif planned.objective != SCRATCH:
            run = train(config, data)
        with run.lock():
            found = read_json(path)
            if not found:
                write_json(path, measure(planned, run, data))
            elif not is_complete(found):
                write_json(path, complete(found, run, data))
    except RunBusy as busy:
        print(busy, flush=True)
        return False
    print(f"measured {path.name}", flush=True)
    return True


def main(argv: list[str] | None = None) -> None:
    arguments = read_arguments(argv)
    if arguments.report:
        collect(outputs() / "study")
        keep_runs(outputs() / "runs", read_records())
        draw(read_records(), RECORDS)
        write_pages(read_records())
        return
    paths = data_paths(arguments.data)
    if not paths:
        raise InputError("nothing to train: give --data NAME=PATH, or --report for the tables")
    loaded: dict[str, Dataset] = {}
    left = [p for p in plan() if not arguments.part or p.part in arguments.part]
    left = [p for p in left if p.data in paths]
    while left:
        busy = []
        for planned in left:
            config = config_of(planned, paths[planned.data], arguments.device)
            if planned.data not in loaded:
                loaded[planned.data] = load(**config.data_fields)
            if not finish(planned, config, loaded[planned.data]):
                busy.append(planned)
        left = busy
        time.sleep(RETRY_SECONDS if left else 0)


if __name__ == "__main__":
    run_command(main)
