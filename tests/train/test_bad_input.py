"""Bad input, one row each: the exact line printed, status 2, nothing trained or written."""

import hashlib
import io
import os
import shutil
import signal

import pytest
import torch
from support import cli, cli_args, few, image_folder, run_of, small
from support.pickle_bomb import BOMB_MARK, PICKLE_BOMB, Bomb

import lib.data
import lib.presets
import lib.train.loop
from lib.errors import InputError, Interrupted
from lib.evaluate import evaluate
from lib.notebook.parameters import read_parameters
from lib.presets import resolve
from lib.runs import open_run
from lib.runs.files import load_state, save_state
from lib.train import train, train_all
from lib.train.arguments import FIELDS, main


def tree(folder) -> dict[str, bytes]:
    """Every file but the lock, which says who looked last."""
    found = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        if folder.exists()
        else {}
    )
    return {name: content for name, content in found.items() if not name.endswith("lock")}


@pytest.fixture
def refused(monkeypatch, capfd, outputs):
    """refused(argv) -> the line that is printed, having checked what holds for all."""
    monkeypatch.setattr(lib.train.loop.Trainer, "train_epoch", lambda *_: pytest.fail("trained"))

    def run(*argv: str) -> str:
        before = tree(outputs)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert tree(outputs) == before
        out, err = capfd.readouterr()
        assert (
            out == "" and err.endswith("\n") and err.count("\n") == 1 and err.startswith("error: ")
        )
        return err[len("error: ") : -1]

    return run


# parameters

NO_DEVICE = "device {!r} is not available here; use auto, cpu, or a cuda device that exists"
HEADS = "{} must be a multiple of {} and of 4 (positions)"
PRESETS = ", ".join(lib.presets.PRESETS)
PARAMETERS = [
    (["--lamda", "0.1"], "unknown option '--lamda': did you mean '--lam'?"),
    (["--learning-rat", "1"], "unknown option '--learning-rat': see --help"),
    (["lam=0.1"], "unknown option 'lam=0.1': did you mean '--lam'?"),
    (["--lam"], "argument --lam: expected one argument; see --help"),
    (["--epochs", "three"], "epochs must be int, got 'three'"),
    (["--epochs", "3.5"], "epochs must be int, got '3.5'"),
    (["--lam", "a lot"], "lam must be float, got 'a lot'"),
    (["--norm-pix-loss", "maybe"], "norm_pix_loss must be true or false, got 'maybe'"),
    (["--lam", "-0.1"], "lam must be finite and at least 0, got -0.1"),
    (["--lam", "nan"], "lam must be finite and at least 0, got nan"),
    (["--lam", "inf"], "lam must be finite and at least 0, got inf"),
    (["--base-lr", "nan"], "base_lr must be finite and at least 0, got nan"),
    (["--weight-decay", "-1"], "weight_decay must be finite and at least 0, got -1.0"),
    (["--mask-ratio", "1"], "mask_ratio must be in [0, 1), got 1.0; the paper uses 0.75"),
    (["--mask-ratio", "1.5"], "mask_ratio must be in [0, 1), got 1.5; the paper uses 0.75"),
    (["--mask-ratio", "-0.5"], "mask_ratio must be in [0, 1), got -0.5; the paper uses 0.75"),
    (["--mask-ratio", "nan"], "mask_ratio must be in [0, 1), got nan; the paper uses 0.75"),
    (
        ["--mask-ratio", "0.97"],
        "mask_ratio 0.97 leaves none of 16 patches visible; use at most 0.9375",
    ),
    (["--patch-size", "3"], "patch_size 3 does not divide image_size 8; choose a divisor"),
    (["--patch-size", "0"], "patch_size must be at least 1, got 0"),
    (["--num-heads", "3"], HEADS.format("embed_dim 16", "num_heads 3")),
    (["--decoder-heads", "5"], HEADS.format("decoder_dim 16", "decoder_heads 5")),
    (["--embed-dim", "18"], HEADS.format("embed_dim 18", "num_heads 2")),
    (["--epochs", "0"], "epochs must be at least 1, got 0"),
    (["--epochs", "-3"], "epochs must be at least 1, got -3"),
    (["--warmup-epochs", "3"], "warmup_epochs 3.0 must not exceed epochs 2"),
    (["--batch-size", "5000"], "batch_size 5000 exceeds the 1437 training images; lower it"),
    (
        ["--batch-size", "1"],
        "batch_size 1 must be a multiple of accum_steps 1 and leave at least 2 images",
    ),
    (
        ["--accum-steps", "3"],
        "batch_size 64 must be a multiple of accum_steps 3 and leave at least 2 images",
    ),
    (
        ["--preset", "digits-vit-nan"],
        "unknown preset 'digits-vit-nan': did you mean 'digits-vit-nano'?",
    ),
    (["--preset", "zzz"], f"unknown preset 'zzz': known: {PRESETS}"),
    (["--preset", "../../etc"], f"unknown preset '../../etc': known: {PRESETS}"),
    (
        ["--data", "mnist"],
        "unknown data 'mnist': expected digits, fashion_mnist, cifar10 or folder:/path/to/images",
    ),
    (
        ["--data", "digits:/x"],
        "unknown data 'digits:/x': expected digits, fashion_mnist, cifar10 or "
        "folder:/path/to/images",
    ),
    (
        ["--data", "folder:"],
        "preset digits-vit-nano needs its images: set data to folder:/path, which holds train/ "
        "and val/",
    ),
    (
        ["--uniformity", "entropy"],
        "uniformity must be one of spectral, released, euclidean, got 'entropy'",
    ),
    (["--pool", "max"], "pool must be one of token, avg, got 'max'"),
    (["--precision", "fp8"], "precision must be one of fp32, bf16, fp64, got 'fp8'"),
    (["--augment", "mixup"], "augment must be one of none, flip, crop, resized_crop, got 'mixup'"),
    (["--device", "gpu"], NO_DEVICE.format("gpu")),
    (["--device", "meta"], NO_DEVICE.format("meta")),
    (["--device", "cuda:99"], NO_DEVICE.format("cuda:99")),
    (["--seed", "-1"], "seed must be at least 0, got -1"),
    (["--seed", str(2**63)], f"seed must be below 2**63, got {2**63}"),
    (["--epochs", str(10**400)], f"epochs must be below 2**63, got {10**400}"),
    (["--lam", "1" + 400 * "0"], "lam must be finite and at least 0, got inf"),
    (["--workers", "-1"], "workers must be at least 0, got -1"),
    (
        ["--classes", "3"],
        "classes must name at least 2 different classes, or none for all, got ['3']",
    ),
    (
        ["--classes", "3,3"],
        "classes must name at least 2 different classes, or none for all, got ['3', '3']",
    ),
    (
        ["--classes", ","],
        "classes must name at least 2 different classes, or none for all, got ['', '']",
    ),
    (
        ["--stream", "always"],
        "stream always has no effect on data digits; leave it out, or change data",
    ),
    (
        ["--data-dir", "/a"],
        "data_dir /a has no effect on data digits; leave it out, or change data",
    ),
    (
        ["--download", "true"],
        "download True has no effect on data digits; leave it out, or change data",
    ),
    (
        ["--norm-pix-loss", "true", "--patch-size", "1"],
        "norm_pix_loss divides by the deviation within a patch, and patch_size 1 leaves one grey "
        "value; use a larger patch_size or norm_pix_loss False",
    ),
    (
        ["--augment", "crop", "--image-size", "4"],
        "augment crop moves an image by an eighth of its side, which of image_size 4 is less than "
        "a pixel; use at least 8, or another augment",
    ),
    (["--classes", "3,11"], "digits has no class '11'; its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    (
        ["--classes", "0,1,2,3,4,5,6,7,8,x"],
        "digits has no class 'x'; its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ),
]


@pytest.mark.parametrize(
    "argv,line", PARAMETERS, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else ""
)
def test_parameters(refused, argv, line):
    assert refused(*cli_args(), *argv) == line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_asked_for_where_there_is_none(refused):
    assert refused(*cli_args(device="cuda")) == NO_DEVICE.format("cuda")


API = [
    (
        {"norm_pix_loss": "true"},
        "norm_pix_loss must be bool, got the str 'true'; with papermill write True or False",
    ),
    ({"lam": "much"}, "lam must be float, got the str 'much'"),
    ({"lam": True}, "lam must be float, got the bool True"),
    ({"epochs": 3.0}, "epochs must be int, got the float 3.0"),
    ({"epochs": True}, "epochs must be int, got the bool True"),
    ({"lamda": 0.1}, "unknown parameter 'lamda': did you mean 'lam'?"),
    (
        {"preset": "x"},
        "unknown parameter 'preset': known: " + ", ".join(n for n in FIELDS if n != "preset"),
    ),
    (
        {"classes": "37"},
        "classes must be tuple, got the str '37'; with papermill give lists and dicts with -y, as "
        "in -y 'seeds: [0, 1]'",
    ),
    ({"classes": (3, 7)}, "classes[0] must be str, got the int 3"),
    ({"seed": [0, 1]}, "seed must be int, got the list [0, 1]"),
    ({"lam": 10**400}, f"lam must be float, got the int {10**400}"),
]


@pytest.mark.parametrize(
    "fields,line", API, ids=lambda v: str(v)[:40] if isinstance(v, dict) else ""
)
def test_parameters_of_a_notebook(fields, line):
    with pytest.raises(InputError) as caught:
        resolve("digits-vit-nano", **fields)
    assert str(caught.value) == line
    assert caught.value._render_traceback_() == [f"InputError: {line}"]


def test_seeds_that_are_no_list_and_an_unknown_protocol():
    cell = "# parameters\nseeds: list = [0]\n"
    with pytest.raises(InputError) as caught:
        read_parameters([cell, "# Parameters\nseeds = 3\n"], {"seeds": 3})
    assert str(caught.value) == "seeds must be list, got the int 3"
    for protocol, pool, line in (
        ("svm", "token", "protocol must be one of online, sgd, mae, lbfgs, knn, got 'svm'"),
        ("sgd", "max", "pool must be one of token, avg, got 'max'"),
    ):
        with pytest.raises(InputError) as caught:
            evaluate(run_of(small()), protocol, pool)
        assert str(caught.value) == line


def test_the_command_as_a_user_types_it(outputs):
    done = cli(*cli_args(lam=-1))
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: lam must be finite and at least 0, got -1.0\n",
    )
    assert not outputs.exists()


# ---- data: every other row is in tests/data ------------------------------------------------------


def _cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(bytes(content))


def test_a_folder_that_is_not_there(refused, tmp_path):
    assert refused(*cli_args(data=f"folder:{tmp_path}/images")) == (
        f"no folder {tmp_path}/images; data=folder:PATH needs PATH/train/<class>/* and PATH/val or "
        "test"
    )


@pytest.mark.parametrize("stream", ["never", "always"])
def test_an_image_that_cannot_be_read(refused, tmp_path, stream):
    root = image_folder(tmp_path / "images", suffix=".jpg", size=(64, 64))
    _cut(root / "train/cat/3.jpg")
    args = cli_args(data=f"folder:{root}", batch_size=4, stream=stream, workers=0)
    assert refused(*args) == (
        f"cannot read the image {root}/train/cat/3.jpg (OSError); replace or remove it"
    )


# checkpoints


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The outputs folder of a small run that was stopped after its fourth step."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMAE_OUTPUTS", str(folder))
        real = lib.train.loop.learning_rate
        stop = iter([0, 0, 0, 1, 0])

        def rate(*args):
            if next(stop):
                os.kill(os.getpid(), signal.SIGINT)
            return real(*args)

        patch.setattr(lib.train.loop, "learning_rate", rate)
        with pytest.raises(Interrupted):
            train(small())
    return folder


def _with_digest(path, payload: bytes):
    path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    torch.save({"step": Bomb()}, buffer)
    return buffer.getvalue()


def _change(path, change):
    state = load_state(path)
    change(state)
    save_state(path, state)


def _narrower(state):
    state["objective"]["mae.encoder.norm.weight"] = torch.zeros(8)


def _renamed(state):
    state["objective"]["mae.encoder.normal.weight"] = state["objective"].pop(
        "mae.encoder.norm.weight"
    )


ALTERED = (
    "{state} is truncated or altered (SHA-256 differs); delete it to train this run from its start"
)
NO_STATE = "{state} is not a training state ({error}); delete it to start again"
CHECKPOINTS = [
    ("truncated", lambda p: _cut(p), ALTERED),
    ("empty", lambda p: p.write_bytes(b""), ALTERED),
    ("flipped bit", lambda p: _flip(p, 0.7), ALTERED),
    ("flipped bit of the digest", lambda p: _flip(p, 0), ALTERED),
    ("pickle with code in it", lambda p: p.write_bytes(PICKLE_BOMB), ALTERED),
    (
        "the same with a digest",
        lambda p: _with_digest(p, PICKLE_BOMB),
        NO_STATE.replace("{error}", "UnpicklingError"),
    ),
    (
        "torch file with code in it",
        lambda p: _with_digest(p, _zip_bomb()),
        NO_STATE.replace("{error}", "UnpicklingError"),
    ),
    (
        "no state at all",
        lambda p: _with_digest(p, b"hello"),
        NO_STATE.replace("{error}", "KeyError"),
    ),
    (
        "missing key",
        lambda p: _change(p, lambda s: s.pop("optimizer")),
        "{state} lacks 'optimizer'; delete it to train this run from its start",
    ),
    (
        "another run's",
        lambda p: _change(p, lambda s: s.update(run="another")),
        "{state} belongs to another run; delete it to start this one again",
    ),
    (
        "another torch",
        lambda p: _change(p, lambda s: s.update(torch="1.13.0")),
        "{state} was written by torch 1.13.0, this is "
        + torch.__version__.split("+")[0]
        + ": its weights would not be those of "
        "one run; install that version to resume, or delete the file to train from the start",
    ),
    (
        "another width",
        lambda p: _change(p, _narrower),
        "{state} is of another architecture: mae.encoder.norm.weight is (8,), expected (16,)",
    ),
    (
        "another name",
        lambda p: _change(p, _renamed),
        "{state} is of another architecture: mae.encoder.norm.weight is nothing, expected (16,)",
    ),
    (
        "record damaged",
        lambda p: (p.parent / "config.json").write_text('{"config": '),
        "{folder}/config.json is damaged (no JSON object); delete the folder {folder.name} to "
        "train it again",
    ),
    (
        "record of another kind",
        lambda p: (p.parent / "config.json").write_text("[]"),
        "{folder}/config.json is damaged (no JSON object); delete the folder {folder.name} to "
        "train it again",
    ),
    (
        "result damaged",
        lambda p: (p.parent / "result.json").write_text("\0\0\0"),
        "{folder}/result.json is damaged (no JSON object); delete the folder {folder.name} to "
        "train it again",
    ),
]


@pytest.mark.parametrize(
    "damage,line", [row[1:] for row in CHECKPOINTS], ids=[row[0] for row in CHECKPOINTS]
)
def test_checkpoints(refused, interrupted, outputs, damage, line):
    shutil.copytree(interrupted, outputs)
    folder = run_of(small()).folder
    state = folder / "state.pt"
    damage(state)
    fingerprint = lib.data.load(**small().data_fields).fingerprint
    assert refused(*cli_args()) == line.format(state=state, folder=folder, fingerprint=fingerprint)
    assert not BOMB_MARK.exists()


def test_an_undamaged_checkpoint_resumes(interrupted, outputs, capsys):
    """The rows above fail for their damage alone."""
    shutil.copytree(interrupted, outputs)
    main(cli_args())
    assert f"resuming at step 4 {run_of(small()).folder.name} on cpu\n" in capsys.readouterr().out


WHOLE = "{path} is not a whole safetensors file (SafetensorError); delete it and train again"
WEIGHTS = [
    (
        "missing",
        lambda p: p.unlink(),
        "no weights at {path}; train this run, or if it is marked finished delete its folder",
    ),
    ("truncated", lambda p: _cut(p), WHOLE),
    ("empty", lambda p: p.write_bytes(b""), WHOLE),
    ("pickle with code in it", lambda p: p.write_bytes(PICKLE_BOMB), WHOLE),
    ("torch file with code in it", lambda p: p.write_bytes(_zip_bomb()), WHOLE),
    (
        "flipped bit",
        lambda p: _flip(p, 0.9),
        "{path} was altered after it was written (SHA-256 differs); delete it and train again",
    ),
]


@pytest.mark.parametrize(
    "damage,line", [row[1:] for row in WEIGHTS], ids=[row[0] for row in WEIGHTS]
)
def test_weights(damage, line):
    run = train(small(epochs=1), few(small()))
    path = run.folder / "model.safetensors"
    damage(path)
    with pytest.raises(InputError) as caught:
        run.load_model()
    assert str(caught.value) == line.format(path=path)
    assert not BOMB_MARK.exists()


# environment


def test_an_output_folder_that_cannot_be_made(refused, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    name = run_of(small()).folder.name
    for root, reason in (
        (tmp_path / "file", "Not a directory"),
        ("/proc/nowhere", "No such file or directory"),
    ):
        monkeypatch.setenv("UMAE_OUTPUTS", str(root))
        assert refused(*cli_args()) == (
            f"cannot write {root}/runs/{name} ({reason}); free the disk or set UMAE_OUTPUTS to a "
            "folder that can be written"
        )


@pytest.mark.parametrize(
    "error,detail",
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB\nMore"
            ),
            "CUDA out of memory",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
            ),
            "CPU",
        ),
        (MemoryError(), "CPU"),
    ],
)
def test_out_of_memory(monkeypatch, capfd, error, detail):
    def fail(*_):
        raise error

    monkeypatch.setattr(lib.train.loop.Trainer, "train_epoch", fail)
    with pytest.raises(SystemExit) as ended:
        main(cli_args())
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"error: out of memory ({detail}); raise accum_steps or lower batch_size (either is "
        "another run), or use bf16"
    )


def test_a_finished_run_without_whole_weights_is_said():
    config = small(epochs=1)
    path = train(config, few(config)).folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    for again in (lambda: train(config, few(config)), lambda: train_all([config], few(config))):
        with pytest.raises(InputError, match="marked as finished, but"):
            again()


def test_processes_are_checked_before_they_start(monkeypatch):
    monkeypatch.setattr("lib.distributed.launch.run", None)
    config = small(epochs=1)
    for processes, said in ((0, "processes must be"), (-1, "processes must be"), (7, "a multiple")):
        with pytest.raises(InputError, match=said):
            train_all([config], few(config), processes=processes)
    with pytest.raises(InputError, match="leaves one image to each"):
        train_all([config], few(config), processes=config.batch_size)


def test_a_damaged_run_stops_no_other(capsys):
    config = small(epochs=1)
    first = train(config, few(config))
    (first.folder / "config.json").write_text("{")
    other = few(config, 150)
    other.fingerprint = "0123456789abcdef"
    assert train(config, other).result


def test_damaged_metrics_are_said_before_the_first_step(monkeypatch):
    config = small(epochs=2)
    monkeypatch.setattr(lib.train.loop.Trainer, "fit", lambda *_: pytest.fail("trained"))
    run = open_run(config, few(config).fingerprint)
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_bytes(b"\xff\x00\n")
    with pytest.raises(InputError, match="is damaged"):
        train(config, few(config))
