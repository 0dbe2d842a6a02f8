"""Image files of strangers: folders of them, and decoding that says which file is wrong."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib.data.decoding import show_path
from lib.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}


def scan(
    folder: Path, expected: Sequence[str] | None, subset: Sequence[str]
) -> tuple[list[str], list[Path], Tensor]:
    """Class names, paths and labels of folder/<class>/<image>, sorted by name."""
    if broken := sorted(d for d in folder.iterdir() if d.is_symlink() and not d.exists()):
        raise InputError(
            f"{show_path(broken[0])} is a link that leads nowhere; repair or remove it"
        )
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if missing := sorted(set(subset) - set(names)):
        raise InputError(
            f"{show_path(folder)} has no class {missing[0]!r}; `classes` must name its subfolders"
        )
    names = [n for n in names if not subset or n in subset]
    if expected is not None and names != list(expected):
        odd = sorted(set(names) ^ set(expected))[0]
        where = "train lacks it" if odd in names else f"{folder.name} lacks it"
        raise InputError(
            f"class {odd!r} is not in both train and {folder.name}: {where}; both need the same classes"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(
                f"class folder {show_path(folder / name)} holds no image; add images or remove it"
            )
        paths += files
        labels += [label] * len(files)
    if len(names) < 2:
        raise InputError(
            f"{show_path(folder)} holds {len(names)} class folders; expected at least 2"
        )
    return names, paths, torch.tensor(labels)
