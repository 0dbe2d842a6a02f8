"""Run folders: what a run is called, what it holds, and who is training it."""

import fcntl
import json
import os
import re
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lib.data import Dataset
from lib.errors import InputError, RunBusy
from lib.presets import PRESETS, REPO, Config
from lib.runs.files import (
    cannot_write,
    load_into,
    load_weights,
    make_folder,
    parse_json,
    read_json,
    readable,
    remove_leftovers,
    weights_digest,
    write_atomic,
    write_json,
)
from lib.runs.provenance import provenance

if TYPE_CHECKING:
    from lib.models import MAE

ORIGIN = ("time", "device", "precision", "kernels", "threads")  # of an attempt, besides its commit

LOOK = 0.05  # seconds: longer than `is_busy` holds a lock that it finds free

# Run folder: its open lock file, as long as the lock is held.
_locks: weakref.WeakValueDictionary[Path, IO[str]] = weakref.WeakValueDictionary()
# A forked worker that outlives its killed parent must not keep the parent's lock.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks.values()])


def outputs() -> Path:
    """The folder for everything that is written: $UMAE_OUTPUTS, or outputs/ of the repository."""
    return Path(os.path.expanduser(os.environ.get("UMAE_OUTPUTS") or REPO / "outputs")).resolve()


def settings_name(config: Config) -> str:
    """<preset>-<what differs>-seed<k>, of letters that cannot leave the folder."""
    base, own = PRESETS[config.preset].identity(), config.identity()
    differs = [k for k in own if own[k] != base.get(k) and k not in ("seed", "warmup_epochs")]
    differs.sort(key=lambda name: name != "imported")  # first, so that it is never cut off
    words = [re.sub(r"[^A-Za-z0-9.]+", "_", f"{k}{own[k]}").strip("_") for k in differs]
    slug = "-".join(words)[:60].strip("-.")
    return "-".join(filter(None, [config.preset, slug, f"seed{config.seed}"]))


def run_name(config: Config, fingerprint: str) -> str:
    """<preset>-<what differs>-seed<k>-<hash8>: the hash is of the settings and the images."""
    return f"{settings_name(config)}-{config.hash8(fingerprint)}"


def imported_from(folder: Path) -> str:
    """The file whose weights a run folder holds, in words; "" if the run was trained here."""
    files = read_json(folder / "config.json").get("imported", {}).get("files", [])
    return f"imported from {files[-1]['name']}, sha256 {files[-1]['sha256'][:12]}" if files else ""


@dataclass(frozen=True)
class Run:
    """One pretraining run on disk, finished or not: settings, and the fingerprint of its images."""

    config: Config
    fingerprint: str
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """The final measurements and provenance, or None while the run is not finished."""
        return read_json(self.folder / "result.json") or None

    @property
    def record(self) -> dict[str, Any]:
        """What was written when the run started: config, provenance, data fingerprint."""
        return read_json(self.folder / "config.json")

    @property
    def imported_from(self) -> str:
        """ "imported from FILE, sha256 ...", or "" for a run that was trained here."""
        return imported_from(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per measured epoch, in order."""
        return self._lines("metrics.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSON-lines file; one cut short is not counted."""
        path = self.folder / name
        if not path.is_file():
            return []
        text = readable(path).decode(errors="replace")
        return [parse_json(path, line) for line in text.split("\n")[:-1]]

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to a JSON-lines file.

        It takes the place of those of this and later epochs that an interrupted attempt left.
        """
        kept = [old for old in self._lines(name) if old["epoch"] < line["epoch"]]
        text = "".join(json.dumps(x) + "\n" for x in [*kept, line])
        write_atomic(self.held() / name, text.encode())

    def held(self) -> Path:
        """The folder, if it is still the one that this process locked; else InputError."""
        try:
            lock = os.fstat(_locks[self.folder].fileno())
            same = os.path.samestat(lock, os.stat(self.folder / "lock"))
        except (OSError, KeyError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"{self.folder} was moved or deleted while it was being trained; run again to "
                "start it anew"
            )
        return self.folder

    def snapshot_epochs(self) -> list[int]:
        """The epochs whose weights are kept, in order."""
        files = (self.folder / "snapshots").glob("epoch-*.safetensors")
        return sorted(int(p.stem.split("-")[1]) for p in files)

    def weights_path(self, epoch: int | None = None) -> Path:
        """The file of the final weights, or of those after `epoch` of `snapshot_epochs()`."""
        if epoch is None:
            return self.folder / "model.safetensors"
        return self.folder / f"snapshots/epoch-{epoch:05d}.safetensors"

    def check_finished(self) -> None:
        """InputError for a run with a result whose final weights are not a whole file."""
        if self.result is not None and not self.weights_digest():
            raise InputError(
                f"{self.folder.name} is marked as finished, but model.safetensors is missing or "
                f"damaged; delete the folder {self.folder} to train it again"
            )

    def weights_digest(self, epoch: int | None = None) -> str:
        """SHA-256 of the weights, as their file says: what a result of this run depends on."""
        return weights_digest(self.weights_path(epoch))

    def load_model(self, epoch: int | None = None) -> "MAE":
        """The trained MAE on the CPU in eval mode, or the one after `epoch`."""
        from lib.models import MAE  # with timm, which takes seconds: only where a model is built

        path = self.weights_path(epoch)
        model = MAE(self.config)
        load_into(model, load_weights(path), path)
        return model.eval()

    def check_data(self, fingerprint: str) -> None:
        """Raises InputError if these are not the images that the run was trained on."""
        if fingerprint != self.fingerprint:
            raise InputError(
                f"run {self.folder.name} was trained on other images ({self.fingerprint}, these "
                f"are {fingerprint}); restore them, or train a run on these"
            )

    def as_trained(self, data: Dataset) -> Dataset:
        """These images with the mean and std that the run was trained with, where it stored them.

        Those of a streamed folder come from a sample, so that they differ from those in memory.
        Raises InputError if these are not the images that the run was trained on.
        """
        self.check_data(data.fingerprint)
        record = self.record
        if "mean" in record and "std" in record:
            return data.with_moments(record["mean"], record["std"])
        return data

    def check_fits(self, data: Dataset) -> None:
        """Raises InputError unless `data` gives the images that this run trains on.

        They have its size and channels, and random resized crops are all of one kind: those of a
        streamed folder are cut from the file, those in memory from the small image.
        """
        wanted = (self.config.channels, self.config.image_size)
        given = (len(data.mean), data.image_size)
        if given != wanted:
            (c, size), (found_c, found) = wanted, given
            raise InputError(
                f"the config is for images of {c} x {size} x {size} values, the data has {found_c} "
                f"x {found} x {found}; load it with load(**config.data_fields)"
            )
        streamed = self.record.get("streamed", data.streamed)
        if self.config.augment == "resized_crop" and streamed != data.streamed:
            ways = ("in memory", "streamed")
            raise InputError(
                f"run {self.folder.name} was begun on images {ways[streamed]}, these are "
                f"{ways[data.streamed]}: their random crops differ; set stream to "
                f"{'always' if streamed else 'never'} to go on with it"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system frees it when the process ends, however.

        Raises RunBusy, naming host, pid and time, if another process holds it.
        """
        make_folder(self.folder)
        try:
            file = open(self.folder / "lock", "a+")  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        with file:
            self._take(file)
            _locks[self.folder] = file
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            with suppress(OSError):  # of a full disk the first file of the run tells
                os.ftruncate(file.fileno(), 0)
                owner = f"{socket.gethostname()}, pid {os.getpid()}, since {now}"
                os.write(file.fileno(), owner.encode())
            remove_leftovers(self.folder)
            yield

    def is_busy(self) -> bool:
        """Whether a process, on this machine or another that shares the folder, is training it.

        The lock is the kernel's (flock): it is free as soon as its owner has ended, however. On
        NFS (version 4, or 3 with lockd) it holds across machines; that of a machine that broke
        down is free after the server's lease, 90 s by default. Mounted with nolock or
        local_lock=flock, or Lustre with localflock, it holds on one machine only.
        """
        try:
            with open(self.folder / "lock", "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no folder yet, or one that cannot be locked: `lock` says so
            return False
        return False

    def _take(self, file: IO[str]) -> None:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOOK)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunBusy(
                f"run {self.folder.name} is being trained by "
                f"{file.read().strip() or 'another process'}; wait for it, then run this again to "
                "reuse its result"
            ) from None
        except OSError as error:  # a network file system without locks
            raise InputError(
                f"cannot lock {self.folder} ({error.strerror}); set UMAE_OUTPUTS to another folder"
            ) from None

    def write_record(self, resumed: bool = False, **more: Any) -> None:
        """config.json: the config, `more`, the provenance, and `attempts`.

        The latter are the provenances of the interrupted attempts that this one goes on from.
        """
        old = self.record if resumed else {}
        attempts = _attempts(old)
        if old:
            attempts.append({k: old.get(k) for k in ("commit", *ORIGIN)})
        config = asdict(self.config)
        record = {"config": config, "fingerprint": self.fingerprint, **more, **provenance()}
        write_json(self.folder / "config.json", {**record, "attempts": attempts})

    def origin(self) -> dict[str, Any]:
        """When, where and how the run was computed, and the commits of all attempts, in order."""
        record = self.record
        commits = [attempt["commit"] for attempt in _attempts(record)] + [record["commit"]]
        how = {k: record.get(k) for k in ORIGIN}
        return {"commit": " then ".join(dict.fromkeys(commits)), **how}


def _attempts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The earlier attempts of a record; older runs call them "before"."""
    return list(record.get("attempts", record.get("before", [])))


def open_run(config: Config, fingerprint: str) -> Run:
    """The run of these settings on the images with this fingerprint, whether it exists or not."""
    return Run(config, fingerprint, outputs() / "runs" / run_name(config, fingerprint))


def explain_new_run(run: Run) -> None:
    """Prints a line for each run of the same settings that this new one does not reuse, and why.

    The images under the same path have changed since, or an earlier version trained it, whose
    runs were named after the path of their images.
    """
    for folder in sorted(run.folder.parent.glob(f"{settings_name(run.config)}-*")):
        try:
            record = read_json(folder / "config.json")
        except InputError:  # a damaged run is no matter of this one
            continue
        if folder == run.folder or record.get("config", {}).get("data") != run.config.data:
            continue
        if "attempts" not in record:
            why = "an earlier version of this code named it after the path of its images"
        elif all(record["config"].get(k) == v for k, v in run.config.identity().items()):
            why = "it was trained on other images under the same path"
        else:
            continue
        print(f"not reusing {folder.name}: {why}; it is kept, and a new run is made beside it")
