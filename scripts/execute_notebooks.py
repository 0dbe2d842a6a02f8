"""`make executed`: executed copies of the notebooks, for readers, in outputs/reference/executed/.

Every notebook runs on its default preset, in reading order and in one outputs folder of its own, so
that they share their runs. A copy holds no path of the machine, is smaller than 1 MB, and names the
hash of the source that it was made from: tests/project says when a copy is older than its source.
With names as arguments only these are executed, and without --all only those that are stale.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode
from PIL import Image

from lib.presets import REPO
from scripts.forked_kernels import forked_kernels

NOTEBOOKS, EXECUTED = REPO / "notebooks", REPO / "outputs" / "reference" / "executed"
LIMIT = 1_000_000  # bytes of a copy


def source_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the types and texts of all cells that papermill did not inject."""
    own = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in own)
    return hashlib.sha256(text.encode()).hexdigest()


def is_stale(path: Path) -> bool:
    """Whether the executed copy of a notebook is missing or of another source."""
    copy = EXECUTED / path.name
    if not copy.is_file():
        return True
    kept = nbformat.read(copy, 4).metadata.get("source_sha256")
    return kept != source_hash(nbformat.read(path, 4))


def smaller(png: str, colours: int = 128) -> str:
    """A base64 PNG with a palette, if that is smaller; figures have few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    image.quantize(colours).save(file, "PNG", optimize=True)
    shrunk = base64.b64encode(file.getvalue()).decode()
    return min(png, shrunk, key=len)


def cleaned(notebook: NotebookNode, places: dict[str, str]) -> NotebookNode:
    """The notebook without traces of the machine: no times, no absolute paths, smaller figures."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        outputs = cell.get("outputs", [])
        cell_outputs = [o for o in outputs if o.get("name") != "stderr"]
        for output in cell_outputs:
            _clean_output(output, places)
        if cell.cell_type == "code":
            cell.outputs = cell_outputs
    return notebook


def _clean_output(output: NotebookNode, places: dict[str, str]) -> None:
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = smaller(data["image/png"])
    for holder, key in [(output, "text"), *((data, kind) for kind in data)]:
        if isinstance(holder.get(key), str) and key != "image/png":
            for old, new in places.items():
                holder[key] = holder[key].replace(old, new)


def execute(path: Path, outputs: Path) -> float:
    """Runs one notebook and writes its copy; seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / path.name
        with forked_kernels():
            papermill.execute_notebook(path, target, cwd=folder, progress_bar=False)
        notebook = nbformat.read(target, 4)
        places = {str(outputs): "outputs", str(REPO): ".", folder: ".", str(Path.home()): "~"}
    notebook = cleaned(notebook, places)
    notebook.metadata["source_sha256"] = source_hash(nbformat.read(path, 4))
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, EXECUTED / path.name)
    size = (EXECUTED / path.name).stat().st_size
    if size > LIMIT:
        sys.exit(f"{path.name}: the executed copy has {size:,} bytes, at most {LIMIT:,} are wanted")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of notebooks, as 02_pretrain; all if none")
    parser.add_argument("--all", action="store_true", help="also those that are up to date")
    parser.add_argument("--outputs", help="folder for the runs; a temporary one if not given")
    args = parser.parse_args()
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in args.names] or sorted(
        NOTEBOOKS.glob("*.ipynb")
    )
    wanted = [path for path in paths if args.all or args.names or is_stale(path)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    os.environ.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory() as temporary:
        outputs = Path(args.outputs or temporary).resolve()
        os.environ["UMAE_OUTPUTS"] = str(outputs)
        for path in wanted:
            seconds = execute(path, outputs)
            size = (EXECUTED / path.name).stat().st_size
            print(f"{path.stem}: {seconds:.0f} s, {size / 1e3:.0f} kB", flush=True)
    print(f"{len(wanted)} executed, {len(paths) - len(wanted)} were up to date")


if __name__ == "__main__":
    main()
