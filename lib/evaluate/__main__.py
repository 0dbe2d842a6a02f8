"""`python -m lib.evaluate --encoder NAME --data folder:/path`: which probe flatters an encoder."""
# PYTHON_ARGCOMPLETE_OK

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lib.command_line import Parser, run_command, sentence
from lib.errors import InputError
from lib.evaluate.audit import PRECISIONS, Settings, audit, compare, table, write_audit
from lib.evaluate.encoders import NORMALIZE, CheckpointOptions, frozen_encoder, is_checkpoint
from lib.evaluate.pictures import load_pictures
from lib.presets import help_of
from lib.runs.cache import cache_key
from lib.runs.folder import outputs

CHECKPOINT = ("image_size", "interpolate", "num_heads", "decoder_heads", "normalize")


def _parser() -> Parser:
    defaults = Settings()
    parser = Parser("python -m lib.evaluate", __doc__)
    _add_input(parser)
    add = partial(parser.option, "what is measured")
    seeds = "Seeds of the trained probes, one or more numbers. Default: 0 1 2."
    add("--seeds", type=int, nargs="+", metavar="N", default=list(defaults.seeds), help=seeds)
    budgets = "Epochs of the plain probe, each at least 1. Default: 1 3 10 30 100."
    add("--budgets", type=int, nargs="+", metavar="N", default=list(defaults.budgets), help=budgets)
    precision = "fp32, or bf16 where it moves no probe by more than 0.1 points. Default: fp32."
    add("--precision", choices=PRECISIONS, default=defaults.precision, help=precision)
    add = partial(parser.option, "machine")
    device = "Where to compute: auto, cpu, cuda or cuda:N. Default: auto."
    add("--device", metavar="TEXT", default="auto", help=device)
    workers = "Processes that decode pictures, at least 0. Default: 0."
    add("--workers", type=int, metavar="N", default=defaults.workers, help=workers)
    _add_checkpoint_options(parser)
    return parser


def _add_input(parser: Parser) -> None:
    add = partial(parser.option, "what is read")
    encoder = "run:NAME, local-dir:/folder, a timm name, untrained:NAME or a file.pth; repeatable."
    shown = "[LABEL=]ENCODER"
    add("--encoder", action="append", required=True, metavar=shown, help=encoder)
    add("--data", required=True, metavar="TEXT", help=sentence(help_of("data")))
    folder = f"{sentence(help_of('data_dir'))} Default: empty."
    add("--data-dir", metavar="TEXT", default="", help=folder)
    images = "At most so many training and as many test pictures, at least 1. Default: all."
    add("--images", type=int, metavar="N", help=images)


def _add_checkpoint_options(parser: Parser) -> None:
    add = partial(parser.option, "what a checkpoint file does not say")
    size = "Pixels of a side of its images. Default: that of its positions."
    add("--image-size", type=int, metavar="N", help=size)
    add("--interpolate", action="store_true", help="Resize its positions to --image-size.")
    heads = "Attention heads, for a width that is not one of MAE's. Default: MAE's."
    add("--num-heads", type=int, metavar="N", help=heads)
    decoder = "The same, of its decoder. Default: MAE's."
    add("--decoder-heads", type=int, metavar="N", help=decoder)
    normalize = "Scale of its pixels. Default: imagenet."
    add("--normalize", choices=tuple(NORMALIZE), default="imagenet", help=normalize)


def run(argv: Sequence[str]) -> Path:
    """Audits what the command line names, prints the page, and returns the folder of its files."""
    parser = _parser()
    parser.complete()
    args = parser.parse_args(argv)
    given = CheckpointOptions(**{name: getattr(args, name) for name in CHECKPOINT})
    if given != CheckpointOptions() and not any(map(is_checkpoint, args.encoder)):
        raise InputError("options of checkpoint files were given, but no encoder is one; drop them")
    if args.data_dir and args.data.partition(":")[0] in ("digits", "folder"):
        raise InputError(f"--data-dir has no effect on --data {args.data}; leave it out")
    settings = Settings(tuple(args.seeds), tuple(args.budgets), args.precision, args.workers)
    data = load_pictures(args.data, args.images, data_dir=args.data_dir)
    encoders = [
        frozen_encoder(spec, args.device, given if is_checkpoint(spec) else None)
        for spec in args.encoder
    ]
    pages = audit(encoders, data, settings)
    named = [(e.name, e.digest) for e in encoders]
    measured = [settings.seeds, settings.budgets, settings.precision]
    key = cache_key({"encoders": named, "settings": measured, "images": data.fingerprint})
    folder = outputs() / "audit" / key[:12]
    write_audit(folder, pages, data=args.data, images=args.images, settings=vars(settings))
    counts = f"{len(data.train):,} training and {len(data.test):,} test pictures"
    print(f"\ntest accuracy in percent; {counts}; probe seeds {args.seeds}")
    print(table(pages).to_string(index=False))
    said = [text for page in pages for text in (page.sentence(), page.sentence_on_size())]
    print("\n" + "\n".join([*said, *compare(pages)]))
    print(f"written to {folder}")
    return folder


def main() -> None:
    """The command line."""
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
