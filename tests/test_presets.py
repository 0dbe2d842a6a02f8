"""Configs: what they accept, what identifies a run, and the parameters of a notebook. Bad input: test_bad_input.py."""

import dataclasses
import itertools
import json

import pytest
from support import small

from lib.errors import InputError
from lib.notebook.parameters import read_parameters
from lib.presets import PRESETS, Config, resolve

FIELDS = {f.name: f for f in dataclasses.fields(Config)}
OTHER = {  # a valid value of each field that differs from the digits preset
    "data": "fashion_mnist", "image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2,
    "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 4, "epochs": 7, "warmup_epochs": 1.0, "batch_size": 32,
    "base_lr": 1e-3, "classes": ("1", "7"), "augment": "flip", "normalize": "unit", "mask_ratio": 0.5,
    "norm_pix_loss": True, "lam": 0.01, "uniformity": "released", "pool": "avg", "weight_decay": 0.1, "accum_steps": 2,
    "precision": "bf16", "seed": 1, "eval_every": 3, "snapshots": 1, "data_dir": "/tmp", "download": True,
    "stream": "always", "workers": 0, "device": "cpu", "compile": True, "shard": True,
    "checkpoint_every": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_own_checks(name):
    data = {"data": "folder:/images"} if PRESETS[name].data == "folder:" else {}
    config = resolve(name, **data)
    assert config == dataclasses.replace(PRESETS[name], **data)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["preset"] == name


def test_the_papers_recipes():
    """Section 5.1 and Table 1 of the paper, and what the authors told of CIFAR-10."""
    for name in ("cifar10-vit-tiny", "cifar10-vit-base"):
        c = PRESETS[name]
        assert (c.epochs, c.batch_size, c.weight_decay, c.mask_ratio, c.lam) == (
            2000,
            4096,
            0.05,
            0.75,
            0.001,
        )
        assert (c.patch_size, c.decoder_dim, c.decoder_depth, c.warmup_epochs) == (2, 192, 4, 200)
        assert (c.normalize, c.augment, c.norm_pix_loss) == ("unit", "none", False)
        assert c.peak_lr == pytest.approx(1.5e-4 * 4096 / 256)
    for name in ("imagenet100-vit-base", "imagenet100-vit-large"):
        c = PRESETS[name]
        assert (c.epochs, c.batch_size, c.weight_decay, c.mask_ratio, c.norm_pix_loss) == (
            200,
            256,
            0.05,
            0.75,
            True,
        )
        assert (c.image_size, c.patch_size, c.decoder_dim, c.decoder_depth) == (224, 16, 512, 8)
        assert c.augment == "resized_crop"


def test_the_table_of_other_values_is_complete():
    assert set(OTHER) == set(FIELDS) - {"preset"}


@pytest.mark.parametrize("name", OTHER)
def test_a_field_enters_the_identity_exactly_if_it_decides_the_result(name):
    base, other = resolve(), resolve(**{name: OTHER[name]})
    assert getattr(other, name) == OTHER[name] != getattr(base, name)
    assert (other.hash8 == base.hash8) == bool(FIELDS[name].metadata.get("where"))


def test_without_the_uniformity_term_its_form_and_place_do_not_count():
    forms = itertools.product(
        (0, 0.0, -0.0), ("spectral", "released", "euclidean"), ("token", "avg")
    )
    zero = {resolve(lam=lam, uniformity=form, pool=pool).hash8 for lam, form, pool in forms}
    assert len(zero) == 1
    assert resolve(lam=0.1).hash8 != resolve(lam=0.1, pool="avg").hash8


def test_an_int_is_taken_for_a_float_and_a_list_for_a_tuple():
    assert resolve(lam=1).hash8 == resolve(lam=1.0).hash8
    assert resolve(classes=["1", "2"]) == resolve(classes=("1", "2"))
    assert resolve(lam=None) == resolve()


def test_the_warm_up_keeps_its_share_of_the_epochs():
    assert resolve(epochs=12).warmup_epochs == pytest.approx(1)
    assert resolve(epochs=12, warmup_epochs=3).warmup_epochs == 3
    assert resolve("cifar10-vit-tiny", epochs=20).warmup_epochs == pytest.approx(2)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().lam = 1  # type: ignore[misc]


CELL = """# parameters
preset: str = 'digits-vit-nano'  # help
lam: float = 0.01
seeds: list = [0]
pool: str | None = None"""


def test_parameters_of_a_notebook():
    values = {"preset": "x", "lam": 1, "seeds": [1, 2], "pool": None, "other": 3}
    got = read_parameters(
        ["", CELL, "# Parameters\nlam = 1\nseeds = [1, 2]\n", "import torch"], values
    )
    assert got == {"preset": "x", "lam": 1.0, "seeds": [1, 2], "pool": None}


@pytest.mark.parametrize(
    "injected,values,message",
    [
        ("lamda = 1", {}, "unknown parameter 'lamda': did you mean 'lam'?"),
        ("zzz = 1", {}, "unknown parameter 'zzz': known: preset, lam, seeds, pool"),
        ("lam = 'a'", {"lam": "a"}, "lam must be float, got the str 'a'"),
        ("lam = True", {"lam": True}, "lam must be float, got the bool True"),
        ("seeds = 3", {"seeds": 3}, "seeds must be list, got the int 3"),
        ("pool = 3", {"pool": 3}, "pool must be None or str, got the int 3"),
    ],
)
def test_bad_parameters_of_a_notebook(injected, values, message):
    good = {"preset": "x", "lam": 0.1, "seeds": [0], "pool": None}
    with pytest.raises(InputError) as caught:
        read_parameters([CELL, f"# Parameters\n{injected}"], {**good, **values})
    assert str(caught.value) == message
