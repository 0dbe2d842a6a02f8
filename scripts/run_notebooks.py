"""`make notebooks`: trains MAE and U-MAE on your images and runs the notebooks 01 to 08 on them.

The images are a folder as README describes it, or an archive of one, which is unpacked into data/
once. Notebook 02 trains both runs of a pair, and those after it find them. Every notebook gets the
parameters that it declares. Executed copies lie in outputs/notebooks/.
"""

import argparse
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from lib.command_line import run_command
from lib.errors import InputError, UMAEError, did_you_mean
from lib.presets import REPO, resolve
from lib.runs import outputs
from scripts.forked_kernels import forked_kernels

NOTEBOOKS = sorted((REPO / "notebooks").glob("0[1-8]_*.ipynb"))
LIBRARIES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
DAMAGED = (OSError, EOFError, RuntimeError, *LIBRARIES)  # what reading an archive can raise
KINDS = {ending for _, endings, _ in shutil.get_unpack_formats() for ending in endings}


def image_folder(given: Path, data: Path = REPO / "data") -> Path:
    """The folder of images: `given`, or data/<its name> if it is an archive, unpacked once.

    Raises InputError for a path that is neither, and an archive that is damaged or without train/.
    """
    if given.is_dir():
        return given
    if not given.is_file():
        raise InputError(f"no folder and no archive {given}; give one that holds train/ and val/")
    ending = next((e for e in sorted(KINDS, key=len)[::-1] if given.name.endswith(e)), None)
    if ending is None:
        raise InputError(f"{given} is no archive; expected one of {', '.join(sorted(KINDS))}")
    target = data / given.name.removesuffix(ending)
    if target.is_dir():
        print(f"{target} is there: unpacked before; delete it to unpack {given.name} again")
        return target
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data) as part:
        _unpack(given, part, ending)
        os.replace(_holder_of_train(Path(part), given), target)
    print(f"unpacked into {target}")
    return target


def _unpack(given: Path, part: str, ending: str) -> None:
    safe = {} if ending == ".zip" else {"filter": "data"}  # zip has no such filter
    try:
        shutil.unpack_archive(given, part, **safe)
    except DAMAGED as error:
        if getattr(error, "errno", None):  # of the disk and not of the archive
            raise
        raise InputError(f"{given} cannot be unpacked: {error}; fetch or pack it again") from None


def _holder_of_train(part: Path, given: Path) -> Path:
    for folder in (part, *sorted(path for path in part.iterdir() if path.is_dir())):
        if (folder / "train").is_dir():
            return folder
    raise InputError(f"{given} holds no folder train; expected train/ and val/ in it")


def declared(path: Path) -> set[str]:
    """The names of the parameters of a notebook."""
    return set(papermill.inspect_notebook(path))


def parameters_of(paths: Sequence[Path], given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For every notebook those of `given` that it declares. InputError for a name of none."""
    names = [declared(path) for path in paths]
    known = sorted(set().union(*names))
    for name in given:
        if name not in known:
            raise InputError(f"no notebook has a parameter {name!r}: {did_you_mean(name, known)}")
    for own in names:
        yield {name: value for name, value in given.items() if name in own}


def run(path: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Executes one notebook, as papermill does. UMAEError in one line if a cell stops."""
    with tempfile.TemporaryDirectory() as folder, forked_kernels():
        try:
            papermill.execute_notebook(path, target, parameters, cwd=folder, progress_bar=False)
        except PapermillExecutionError as error:
            raise UMAEError(
                f"{path.stem} stopped: {error.ename}: {error.evalue}; as far as it came: {target}"
            ) from None


def read_yaml(text: str) -> dict[str, Any]:
    """The dict in a text as '{epochs: 2}'; InputError for anything else."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError:
        given = text
    if not isinstance(given, dict):
        raise InputError(f"parameters must be a YAML dict, as '{{epochs: 2}}', got {given!r}")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/, or an archive of it")
    parser.add_argument("--preset", default="tiny-imagenet-vit-micro")
    parser.add_argument("--parameters", default="{}", help="YAML, as '{epochs: 2, jobs: 1}'")
    parser.add_argument("--only", nargs="+", default=[], help="numbers, as 03 05; all if none")
    args = parser.parse_args(argv)
    given = read_yaml(args.parameters)
    if taken := sorted(given.keys() & {"preset", "data"}):
        raise InputError(f"parameters hold {taken[0]}; give it as DATA=PATH or PRESET=NAME")
    folder = image_folder(args.data.expanduser().resolve())
    resolve(args.preset, data=f"folder:{folder}")
    given |= {"preset": args.preset, "data": f"folder:{folder}"}
    chosen = list(zip(NOTEBOOKS, parameters_of(NOTEBOOKS, given), strict=True))
    if odd := sorted(set(args.only) - {path.name[:2] for path in NOTEBOOKS}):
        raise InputError(f"--only takes numbers from 01 to 08, got {odd[0]!r}")
    copies = outputs() / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for path, own in chosen:
        if args.only and path.name[:2] not in args.only:
            continue
        started = time.monotonic()
        run(path, copies / path.name, own)
        print(f"{path.stem}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"all: {time.monotonic() - begun:.0f} s; executed copies: {copies}")


if __name__ == "__main__":
    run_command(main)
