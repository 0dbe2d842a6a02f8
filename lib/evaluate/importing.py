"""`python -m lib.evaluate.importing --files FILE ...`: a checkpoint as a run, for all notebooks.

All options of `python -m lib.train` may follow. They must be those that a notebook is given: they
name the run, and what they say of the model must be what the file holds. Nothing is trained.
"""
# PYTHON_ARGCOMPLETE_OK

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lib.command_line import Parser, run_command
from lib.data import Dataset, load
from lib.errors import InputError, check_choice
from lib.evaluate.checkpoints import Converted, load_checkpoint
from lib.evaluate.encoders import NORMALIZE
from lib.presets import PRESETS, Config
from lib.runs.files import load_into
from lib.runs.folder import Run, open_run
from lib.runs.progress import progress
from lib.train.arguments import read_arguments
from lib.train.checkpoint import Checkpoint
from lib.train.loop import Trainer

# What a file fixes by the shapes of its tensors; `Converted.said` adds what it names.
SHAPES = (
    "image_size", "patch_size", "embed_dim", "depth", "num_heads", "decoder_dim", "decoder_depth",
    "decoder_heads",
)  # fmt: skip
NAMED = ("lam", "uniformity", "pool", "epochs", "data_dir")  # parameters of the notebooks
OTHERS = (
    *SHAPES,
    "mask_ratio",
    "norm_pix_loss",
    "normalize",
    "classes",
    "classes_file",
    "imported",
)
MOMENTS = ("imagenet", "dataset")


def import_run(
    files: Sequence[Path],
    config: Config,
    moments: str = "imagenet",
    interpolate: bool = False,
) -> Run:
    """The run of `config` with the weights of checkpoint files of one training, in their order.

    The last file gives the final weights; every file that names its epoch gives a snapshot. They
    are full checkpoints of the MAE code or of the authors' release (`lib.evaluate.checkpoints`).
    config.imported is the name of that training. The images are those that the notebooks will use.
    moments: of config.normalize "dataset", the mean and deviation of ImageNet, as in the MAE code,
    or those of the images. interpolate: resize the positions to config.image_size.

    Reconstruction, uniformity and rank are measured here; the record and the result name the files
    and their SHA-256. Raises InputError for a file that contradicts the config or has no decoder,
    and for a run that exists.
    """
    check_choice("moments", moments, MOMENTS)
    if not config.imported or not files:
        raise InputError("importing needs files, and a name of their training as imported")
    config = replace(config, **config.identity())  # one spelling for all that name the same run
    described = [_described(path, config, interpolate, path == files[-1]) for path in files]
    _check_order(described, config)
    images = load(**config.data_fields)
    if moments == "imagenet":
        images = images.with_moments(**NORMALIZE["imagenet"])
    run = open_run(config, images.fingerprint)
    with run.lock():
        if run.result is not None:
            raise InputError(
                f"{run.folder.name} exists, {run.imported_from}; delete its folder to import it "
                "again, or give another name as imported"
            )
        _write(run, images, files, described, interpolate)
    return run


def _write(
    run: Run,
    images: Dataset,
    files: Sequence[Path],
    described: Sequence[dict[str, Any]],
    interpolate: bool,
) -> None:
    """The files of the run, its result last."""
    trainer = Trainer(run.config, images)
    checkpoint = Checkpoint(run, trainer.objective, trainer.optimizer, trainer.device)
    source = {"name": run.config.imported, "files": described}
    moments = {"mean": images.mean.tolist(), "std": images.std.tolist()}
    how: dict[str, Any] = {**trainer.how, **moments, "streamed": images.streamed}
    run.write_record(imported=source, **how)
    for path, what in zip(files, described, strict=True):
        model = _converted(path, run.config, interpolate).model
        load_into(trainer.objective.mae, model.state_dict(), path)
        if what["epoch"] is not None:
            checkpoint.snapshot(what["epoch"])
    with progress(len(trainer.val_ids) + len(images.test), name="measuring", delay=10) as bar:
        measured = trainer.measure("validation", bar) | trainer.measure("test", bar)
    # The layers that a training here has beside the model were never trained.
    measured = {name: value for name, value in measured.items() if "online" not in name}
    checkpoint.log({"epoch": run.config.epochs, **_of(measured, "validation")}, 0.0, 0)
    checkpoint.finish({"epochs": run.config.epochs, "imported": source, **measured}, images)


def _of(measured: dict[str, float], split: str) -> dict[str, float]:
    return {name: value for name, value in measured.items() if name.startswith(split)}


def _converted(path: Path, config: Config, interpolate: bool) -> Converted:
    heads = config.num_heads, config.decoder_heads
    return load_checkpoint(path, config.image_size, interpolate, *heads)


def _described(path: Path, config: Config, interpolate: bool, last: bool) -> dict[str, Any]:
    """What the record says of a file; InputError if it is not of `config`."""
    found = _converted(path, config, interpolate)
    for name in (*SHAPES, *found.said):
        theirs, ours = getattr(found.config, name), getattr(config, name)
        if theirs != ours and (last or name != "epochs"):
            option = name.replace("_", "-")
            raise InputError(
                f"{path} has {name} {theirs}, the settings have {ours}; give --{option} {theirs}, "
                "here and in the overrides of the notebooks"
            )
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": path.name,
        "sha256": sha256,
        "epoch": found.said.get("epochs"),
        "args": found.args,
        "notes": list(found.notes),
    }


def _check_order(described: Sequence[dict[str, Any]], config: Config) -> None:
    """Raises InputError unless several files name their epochs, in increasing order."""
    epochs = [what["epoch"] for what in described]
    if len(epochs) > 1 and (None in epochs or epochs != sorted(set(epochs))):
        raise InputError(
            f"several files must be of growing epochs of one training, got {epochs}; give them in "
            "their order, the last one last"
        )


def run(argv: Sequence[str]) -> Run:
    """Imports what the command line names, and prints how a notebook is told to use it."""
    parser = Parser("python -m lib.evaluate.importing", __doc__)
    add = partial(parser.option, "what is imported")
    files = "Checkpoint files of one training, in the order of their epochs."
    add("--files", nargs="+", required=True, type=Path, metavar="FILE", help=files)
    name = "A name for that training; notebooks find it by this name."
    add("--imported", required=True, metavar="NAME", help=name)
    lam = "Weight of the uniformity term in that training; 0 for MAE."
    add("--lam", required=True, metavar="X", help=lam)
    moments = "Mean and deviation by which its pixels were scaled. Default: imagenet."
    add("--moments", choices=MOMENTS, default=MOMENTS[0], help=moments)
    add("--interpolate", action="store_true", help="Resize the positions to --image-size.")
    parser.complete()
    args, others = parser.parse_known_args(argv)
    config = read_arguments([*others, "--lam", args.lam, "--imported", args.imported])
    found = import_run(args.files, config, args.moments, args.interpolate)
    print(f"{found.folder.name}: {found.imported_from}")
    print(f"for a notebook: {_parameters(config)}")
    return found


def _parameters(config: Config) -> str:
    """The parameters of a notebook that looks for this training.

    Its lam is that of its U-MAE runs; its MAE runs, with lam 0, it looks for by itself.
    """
    base = PRESETS[config.preset]
    differs = [name for name in (*NAMED, *OTHERS) if getattr(config, name) != getattr(base, name)]
    text = f"-p preset {config.preset} -p data {shlex.quote(config.data)}"
    for name in NAMED:
        if name in differs and (config.lam or name not in ("lam", "uniformity", "pool")):
            text += f" -p {name} {shlex.quote(str(getattr(config, name)))}"
    others = {name: getattr(config, name) for name in OTHERS if name in differs}
    lists = {"seeds": [config.seed], "overrides": others}
    return " ".join(
        [text, *(f"-y {shlex.quote(f'{k}: {json.dumps(v)}')}" for k, v in lists.items())]
    )


def main() -> None:
    """The command line."""
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
