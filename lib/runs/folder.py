"""Run folders: where a run lives, who is working on it, and files that are never seen half-written."""

import fcntl
import json
import os
import re
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lib.errors import InputError, RunBusy
from lib.models import MAE
from lib.presets import PRESETS, REPO, Config
from lib.runs.files import (
    _alive,
    _parse,
    _read_json,
    load_into,
    load_weights,
    write_atomic,
    write_json,
)
from lib.runs.provenance import provenance

ORIGIN = ("time", "device", "precision", "passes")  # of a sitting, besides its commit


_locks: weakref.WeakValueDictionary[Path, IO[str]] = (
    weakref.WeakValueDictionary()
)  # run folder: its open lock file


# A forked worker that outlives its killed parent must not keep the parent's lock.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks.values()])


def outputs() -> Path:
    """The folder for everything that is written: $UMAE_OUTPUTS, or outputs/ of the repository."""
    return Path(os.environ.get("UMAE_OUTPUTS") or REPO / "outputs").expanduser().resolve()


def run_name(config: Config) -> str:
    """<preset>-<what differs>-seed<k>-<hash8>, of letters that cannot leave the folder."""
    base, own = PRESETS[config.preset].identity(), config.identity()
    differs = [k for k in own if own[k] != base[k] and k not in ("seed", "warmup_epochs")]
    slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", f"{k}{own[k]}").strip("_") for k in differs)[:60]
    return "-".join(
        filter(None, [config.preset, slug.strip("-."), f"seed{config.seed}", config.hash8])
    )


@dataclass(frozen=True)
class Run:
    """One pretraining run on disk, finished or not."""

    config: Config
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """The final measurements and provenance, or None while the run is not finished."""
        return _read_json(self.folder / "result.json") or None

    @property
    def record(self) -> dict[str, Any]:
        """What was written when the run started: config, provenance, data fingerprint."""
        return _read_json(self.folder / "config.json")

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per measured epoch, in order."""
        return self._lines("metrics.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSON-lines file; one cut short is not counted."""
        path = self.folder / name
        return (
            [_parse(path, line) for line in path.read_text().split("\n")[:-1]]
            if path.is_file()
            else []
        )

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to a JSON-lines file, in place of those of this and later epochs that a resumed run left."""
        kept = [old for old in self._lines(name) if old["epoch"] < line["epoch"]]
        write_atomic(
            self.held() / name, "".join(json.dumps(x) + "\n" for x in [*kept, line]).encode()
        )

    def held(self) -> Path:
        """The folder, if it is still the one that this process locked; InputError if it was moved or deleted since."""
        try:
            same = os.path.samestat(
                os.fstat(_locks[self.folder].fileno()), os.stat(self.folder / "lock")
            )
        except (OSError, KeyError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"{self.folder} was moved or deleted while it was being trained; run again to start it anew"
            )
        return self.folder

    def snapshot_epochs(self) -> list[int]:
        return sorted(
            int(p.stem.split("-")[1])
            for p in (self.folder / "snapshots").glob("epoch-*.safetensors")
        )

    def load_model(self, epoch: int | None = None) -> MAE:
        """The trained MAE on the CPU in eval mode, or the one after `epoch` of `snapshot_epochs()`."""
        name = "model.safetensors" if epoch is None else f"snapshots/epoch-{epoch:05d}.safetensors"
        model = MAE(self.config)
        load_into(model, load_weights(self.folder / name), self.folder / name)
        return model.eval()

    def check_data(self, fingerprint: str) -> None:
        """Raises InputError if the run was trained on other pixels or labels than these."""
        if (own := self.record.get("fingerprint", fingerprint)) != fingerprint:
            raise InputError(
                f"run {self.folder.name} was trained on other data ({own}, now {fingerprint}); restore the data, or "
                "set UMAE_OUTPUTS to another folder"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system frees it when the process ends, however it ends.

        Raises RunBusy, naming host, pid and time, if another process holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / "lock", "a+")  # noqa: SIM115
        except OSError as error:
            raise InputError(
                f"cannot write {self.folder} ({error.strerror}); set UMAE_OUTPUTS to another folder"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunBusy(
                    f"run {self.folder.name} is being trained by {file.read().strip() or 'another process'}; wait for "
                    "it, then run this again to reuse its result"
                ) from None
            except OSError as error:  # a network file system without locks
                raise InputError(
                    f"cannot lock {self.folder} ({error.strerror}); set UMAE_OUTPUTS to another"
                ) from None
            _locks[self.folder] = file
            file.truncate(0)
            file.write(
                f"{socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            file.flush()
            for leftover in self.folder.rglob(
                ".*.tmp"
            ):  # of a process that was killed while it wrote
                if not _alive(leftover.name.split(".")[-2]):
                    leftover.unlink(missing_ok=True)
            yield

    def write_record(self, resumed: bool = False, **more: Any) -> None:
        """config.json: the config, `more`, the provenance, and `before`, that of the sittings this one goes on from."""
        old = self.record if resumed else {}
        last = [{k: old.get(k) for k in ("commit", *ORIGIN)}] if old else []
        record = {
            "config": asdict(self.config),
            **more,
            **provenance(),
            "before": [*old.get("before", []), *last],
        }
        write_json(self.folder / "config.json", record)

    def origin(self) -> dict[str, Any]:
        """When, where and how the run was computed, and the commits of all its sittings in their order."""
        record = self.record
        commits = dict.fromkeys(
            [*(sitting["commit"] for sitting in record["before"]), record["commit"]]
        )
        return {"commit": " then ".join(commits), **{k: record[k] for k in ORIGIN}}


def open_run(config: Config) -> Run:
    """The run that `config` names, whether it exists yet or not."""
    return Run(config, outputs() / "runs" / run_name(config))
