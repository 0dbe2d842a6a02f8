"""Run folders: where a run lives, who is working on it, and files that are never seen half-written."""

import fcntl
import hashlib
import io
import json
import os
import re
import socket
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lib.errors import InputError, RunBusy
from lib.machine import provenance
from lib.models import MAE, encoder_args
from lib.presets import PRESETS, REPO, Config

ORIGIN = ("time", "device", "precision", "passes")  # of a sitting, besides its commit

_locks: weakref.WeakValueDictionary[Path, IO[str]] = weakref.WeakValueDictionary()  # run folder: its open lock file
# A forked worker that outlives its killed parent must not keep the parent's lock.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks.values()])


def outputs() -> Path:
    """The folder for everything that is written: $UMAE_OUTPUTS, or outputs/ of the repository."""
    return Path(os.environ.get("UMAE_OUTPUTS") or REPO / "outputs").expanduser().resolve()


def write_atomic(path: Path, content: bytes) -> None:
    """Writes so that `path` holds the old content or the new one, even if the machine stops in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path} ({error.strerror}); earlier files are intact: free the disk or set UMAE_OUTPUTS to a "
            "folder that can be written, then run again to resume"
        ) from None


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(
            f"{path} is damaged (no JSON); delete the folder {path.parent.name} to train it again"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(path, path.read_text(errors="replace")) if path.is_file() else {}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors as safetensors, with their SHA-256 in the header."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(tensors, metadata={"sha256": _digest(tensors)}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError if it is absent, truncated or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
            expected = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        raise InputError(
            f"no weights at {path}; train this run, or if it is marked finished delete its folder"
        ) from None
    except Exception as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({type(error).__name__}); delete it and train again"
        ) from None
    if expected != _digest(tensors):
        raise InputError(f"{path} was altered after it was written (SHA-256 differs); delete it and train again")
    return tensors


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Training state: a SHA-256 line, then torch.save of tensors and plain types."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_state(path: Path) -> dict[str, Any]:
    """The state that `save_state` wrote; nothing in the file can run (weights_only). InputError if it is damaged."""
    head, _, payload = path.read_bytes().partition(b"\n")
    if head.decode("ascii", "replace") != hashlib.sha256(payload).hexdigest():
        raise InputError(
            f"{path} is truncated or altered (SHA-256 differs); delete it to train this run from its start"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(payload), weights_only=True)
    except Exception as error:
        raise InputError(f"{path} is not a training state ({type(error).__name__}); delete it to start again") from None


def run_name(config: Config) -> str:
    """<preset>-<what differs>-seed<k>-<hash8>, of letters that cannot leave the folder."""
    base, own = PRESETS[config.preset].identity(), config.identity()
    differs = [k for k in own if own[k] != base[k] and k not in ("seed", "warmup_epochs")]
    slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", f"{k}{own[k]}").strip("_") for k in differs)[:60]
    return "-".join(filter(None, [config.preset, slug.strip("-."), f"seed{config.seed}", config.hash8]))


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
        return [_parse(path, line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to a JSON-lines file, in place of those of this and later epochs that a resumed run left."""
        kept = [old for old in self._lines(name) if old["epoch"] < line["epoch"]]
        write_atomic(self.held() / name, "".join(json.dumps(x) + "\n" for x in [*kept, line]).encode())

    def held(self) -> Path:
        """The folder, if it is still the one that this process locked; InputError if it was moved or deleted since."""
        try:
            same = os.path.samestat(os.fstat(_locks[self.folder].fileno()), os.stat(self.folder / "lock"))
        except (OSError, KeyError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"{self.folder} was moved or deleted while it was being trained; run again to start it anew"
            )
        return self.folder

    def snapshot_epochs(self) -> list[int]:
        return sorted(int(p.stem.split("-")[1]) for p in (self.folder / "snapshots").glob("epoch-*.safetensors"))

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
                raise InputError(f"cannot lock {self.folder} ({error.strerror}); set UMAE_OUTPUTS to another") from None
            _locks[self.folder] = file
            file.truncate(0)
            file.write(f"{socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            for leftover in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
                if not _alive(leftover.name.split(".")[-2]):
                    leftover.unlink(missing_ok=True)
            yield

    def write_record(self, resumed: bool = False, **more: Any) -> None:
        """config.json: the config, `more`, the provenance, and `before`, that of the sittings this one goes on from."""
        old = self.record if resumed else {}
        last = [{k: old.get(k) for k in ("commit", *ORIGIN)}] if old else []
        record = {"config": asdict(self.config), **more, **provenance(), "before": [*old.get("before", []), *last]}
        write_json(self.folder / "config.json", record)

    def origin(self) -> dict[str, Any]:
        """When, where and how the run was computed, and the commits of all its sittings in their order."""
        record = self.record
        commits = dict.fromkeys([*(sitting["commit"] for sitting in record["before"]), record["commit"]])
        return {"commit": " then ".join(commits), **{k: record[k] for k in ORIGIN}}


def load_into(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads tensors strictly; InputError naming the first difference if they belong to another architecture."""
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        a, b = own.get(name), tensors.get(name)
        if a is None or b is None or a.shape != b.shape:
            found, wanted = (("nothing" if t is None else str(tuple(t.shape))) for t in (b, a))
            raise InputError(f"{path} is of another architecture: {name} is {found}, expected {wanted}")
    model.load_state_dict(tensors)


def open_run(config: Config) -> Run:
    """The run that `config` names, whether it exists yet or not."""
    return Run(config, outputs() / "runs" / run_name(config))


def export_encoder(weights: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Writes the encoder of an MAE's weights so that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it
    back."""
    own = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    state = {k: v.detach().cpu().float().contiguous() for k, v in own.items()}
    write_atomic(folder / "model.safetensors", save(state))
    size = [config.channels, config.image_size, config.image_size]
    description = {
        "architecture": "vit_base_patch16_224", "num_classes": 0, "model_args": encoder_args(config),
        "pretrained_cfg": {
            "input_size": size, "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    write_json(folder / "config.json", description)


def report_folder(notebook: str, config: Config, **parameters: Any) -> Path:
    """Where a notebook writes its figures and numbers: its own folder for every config and set of parameters."""
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return outputs() / notebook / f"{run_name(config)}-{key}"
