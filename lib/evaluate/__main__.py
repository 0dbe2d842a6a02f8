"""`python -m lib.evaluate --encoder NAME --data folder:/path`: which probe flatters an encoder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.errors import InputError, UMAEError
from lib.evaluate.audit import Settings, audit, compare, text_table, write_audit
from lib.evaluate.encoders import NORMALIZE, CheckpointOptions, frozen_encoder, is_checkpoint
from lib.evaluate.pictures import load_pictures
from lib.runs.cache import cache_key
from lib.runs.folder import outputs

CHECKPOINT = ("image_size", "interpolate", "num_heads", "decoder_heads", "normalize")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see --help")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m lib.evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--encoder",
        action="append",
        required=True,
        metavar="[LABEL=]ENCODER",
        help="run:NAME, local-dir:/folder, a timm name, untrained:NAME or a file.pth; repeatable",
    )
    add("--data", required=True, help="folder:/path, digits, fashion_mnist or cifar10")
    add("--data-dir", default="", help="where torchvision's files are")
    add("--images", type=int, help="at most so many training and as many test pictures")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trained probes")
    add("--budgets", type=int, nargs="+", default=[1, 3, 10, 30, 100], help="of the plain probe")
    add(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16"),
        help="bf16: where it moves no probe by more than 0.1 points",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--workers", type=int, default=0, help="processes that decode pictures")
    add("--image-size", type=int, help="of a checkpoint file, if not that of its positions")
    add("--interpolate", action="store_true", help="resize the positions to --image-size")
    add("--num-heads", type=int, help="of a checkpoint file whose width is not one of MAE's")
    add("--decoder-heads", type=int, help="likewise, of its decoder")
    add(
        "--normalize",
        choices=tuple(NORMALIZE),
        default="imagenet",
        help="pixels of a checkpoint file",
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> Path:
    """Audits what the command line names, prints the page, and returns the folder of its files."""
    args = _arguments(argv)
    given = CheckpointOptions(**{name: getattr(args, name) for name in CHECKPOINT})
    if given != CheckpointOptions() and not any(map(is_checkpoint, args.encoder)):
        raise InputError("options of checkpoint files were given, but no encoder is one; drop them")
    settings = Settings(tuple(args.seeds), tuple(args.budgets), args.precision, args.workers)
    data = load_pictures(args.data, args.images, data_dir=args.data_dir)
    encoders = [
        frozen_encoder(spec, args.device, given if is_checkpoint(spec) else None)
        for spec in args.encoder
    ]
    pages = audit(encoders, data, settings)
    key = cache_key({"encoders": [e.digest for e in encoders], "images": data.fingerprint})
    folder = outputs() / "audit" / key[:12]
    write_audit(folder, pages, data=args.data, images=args.images, settings=vars(settings))
    counts = f"{len(data.train):,} training and {len(data.test):,} test pictures"
    print(f"\ntest accuracy in percent; {counts}; probe seeds {args.seeds}")
    print(text_table(pages))
    print("\n" + "\n".join([*(page.sentence() for page in pages), *compare(pages)]))
    print(f"written to {folder}")
    return folder


def main() -> None:
    """The command line: one line and status 1 for what a person can act on."""
    try:
        run(sys.argv[1:])
    except UMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
