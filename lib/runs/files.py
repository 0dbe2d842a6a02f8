"""Files that are never seen half-written, and that are refused when they were altered."""

import hashlib
import io
import json
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lib.errors import InputError


def write_atomic(path: Path, content: bytes) -> None:
    """Writes so that `path` holds the old content or the new, even if the machine stops meanwhile.

    Raises InputError if it cannot be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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
            f"cannot write {path} ({error.strerror}); earlier files are intact: free the disk or "
            "set UMAE_OUTPUTS to a folder that can be written, then run again to resume"
        ) from None


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it; InputError if that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path} ({error.strerror}); free the disk or set UMAE_OUTPUTS to a folder "
        "that can be written"
    )


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes of this machine that were killed while they wrote."""
    for leftover in folder.rglob(".*.tmp"):
        *_, pid, _ = leftover.name.split(".")
        here = f".{socket.gethostname()}.{pid}.tmp" in leftover.name
        if here and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value (see `write_atomic`)."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """The JSON object in `text`, which was read from `path`; InputError if it is damaged."""
    with suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise InputError(
        f"{path} is damaged (no JSON object); delete the folder {path.parent.name} to train it "
        "again"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON of a file, {} if there is none; InputError if it is damaged."""
    if not path.is_file():
        return {}
    return parse_json(path, readable(path).decode(errors="replace"))


def readable(path: Path) -> bytes:
    """The bytes of a file; InputError if this user may not read it."""
    try:
        return path.read_bytes()
    except PermissionError:
        raise InputError(f"cannot read {path} (Permission denied); make it readable") from None


def digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(
            name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def save_weights(path: Path, tensors: dict[str, Tensor], inputs: Any = None) -> None:
    """Tensors as safetensors; in the header their SHA-256 and, as JSON, what decided them."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata = {"sha256": digest(tensors)}
    if inputs is not None:
        metadata["inputs"] = json.dumps(inputs)
    write_atomic(path, save(tensors, metadata=metadata))


def weights_digest(path: Path) -> str:
    """The SHA-256 in the header of a file that `save_weights` wrote, or "" if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("sha256", "")
    except (OSError, SafetensorError):
        return ""


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; InputError if it is absent, truncated or altered."""
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
            f"{path} is not a whole safetensors file ({type(error).__name__}); delete it and "
            "train again"
        ) from None
    if expected != digest(tensors):
        raise InputError(
            f"{path} was altered after it was written (SHA-256 differs); delete it and train again"
        )
    return tensors


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Training state: a SHA-256 line, then torch.save of tensors and plain types."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_state(path: Path) -> dict[str, Any]:
    """The state that `save_state` wrote; nothing in the file can run. InputError if damaged."""
    head, _, payload = readable(path).partition(b"\n")
    if head.decode("ascii", "replace") != hashlib.sha256(payload).hexdigest():
        raise InputError(
            f"{path} is truncated or altered (SHA-256 differs); delete it to train this run from "
            "its start"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(payload), weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} is not a training state ({type(error).__name__}); delete it to start again"
        ) from None


def check_architecture(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises InputError naming the first tensor, by name, that does not fit the model."""
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        wanted, found = _shape(own.get(name)), _shape(tensors.get(name))
        if found != wanted:
            raise InputError(
                f"{path} is of another architecture: {name} is {found}, expected {wanted}"
            )


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))


def load_into(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads the tensors of `path` strictly; InputError if they are of another architecture."""
    check_architecture(model, tensors, path)
    model.load_state_dict(tensors)
