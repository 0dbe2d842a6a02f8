"""Presets and Configs: what they hold, and which fields identify a run."""

import dataclasses
import itertools
import json

import pytest
from support import small

from lib.losses import UNIFORMITY_FORMS
from lib.presets import PRESETS, Config, resolve

FIELDS = {f.name: f for f in dataclasses.fields(Config)}
# A valid value of each field that differs from the digits preset.
OTHER = {
    "data": "fashion_mnist",
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "epochs": 7,
    "warmup_epochs": 1.0,
    "batch_size": 32,
    "base_lr": 1e-3,
    "imported": "theirs",
    "classes": ("1", "7"),
    "augment": "flip",
    "normalize": "unit",
    "mask_ratio": 0.5,
    "norm_pix_loss": True,
    "lam": 0.01,
    "uniformity": "released",
    "pool": "avg",
    "weight_decay": 0.1,
    "accum_steps": 2,
    "precision": "bf16",
    "seed": 1,
    "eval_every": 3,
    "snapshots": 1,
    "classes_file": "/tmp/classes.txt",
    "data_dir": "/tmp",
    "download": True,
    "stream": "always",
    "workers": 0,
    "device": "cpu",
    "compile": True,
    "shard": True,
    "checkpoint_every": 5,
}
IMAGES = "0123456789abcdef"  # a fingerprint


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_own_checks(name):
    data = {"data": "folder:/images"} if PRESETS[name].data == "folder:" else {}
    config = resolve(name, **data)
    assert config == dataclasses.replace(PRESETS[name], **data)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["preset"] == name


def fields(config, *names):
    return tuple(getattr(config, name) for name in names)


def test_the_papers_recipes():
    """Section 5.1 and Table 1 of the paper, and what the authors told of CIFAR-10."""
    common = ("batch_size", "epochs", "weight_decay", "mask_ratio", "uniformity", "lam")
    for name in ("cifar10-vit-tiny", "cifar10-vit-base"):
        c = PRESETS[name]
        assert fields(c, *common) == (4096, 2000, 0.05, 0.75, "released", 0.01)
        assert fields(c, "patch_size", "decoder_dim", "decoder_depth") == (2, 192, 4)
        assert fields(c, "normalize", "augment", "norm_pix_loss") == ("unit", "none", False)
        assert c.warmup_epochs == 200
        assert c.peak_lr == pytest.approx(1.5e-4 * 4096 / 256)
    for name in ("imagenet100-vit-base", "imagenet100-vit-large"):
        c = PRESETS[name]
        assert fields(c, *common) == (256, 200, 0.05, 0.75, "released", 0.01)
        assert fields(c, "image_size", "patch_size", "decoder_dim", "decoder_depth") == (
            224,
            16,
            512,
            8,
        )
        assert c.augment == "resized_crop" and c.norm_pix_loss


def test_the_table_of_other_values_is_complete():
    assert set(OTHER) == set(FIELDS) - {"preset"}


@pytest.mark.parametrize("name", OTHER)
def test_a_field_enters_the_identity_exactly_if_it_decides_the_result(name):
    """The images decide too, but by their fingerprint, wherever they lie."""
    files = {"data": "cifar10"} if name in ("data_dir", "download", "stream") else {}
    base, other = resolve(**files), resolve(**files, **{name: OTHER[name]})
    assert getattr(other, name) == OTHER[name] != getattr(base, name)
    elsewhere = FIELDS[name].metadata.get("where") or FIELDS[name].metadata.get("data")
    assert (other.hash8(IMAGES) == base.hash8(IMAGES)) == bool(elsewhere)


def test_other_images_are_another_run():
    assert resolve().hash8(IMAGES) != resolve().hash8(IMAGES[::-1])


def test_without_the_uniformity_term_its_form_and_place_do_not_count():
    zeros, pools = (0, 0.0, -0.0), ("token", "avg")
    names = {
        resolve(lam=lam, uniformity=form, pool=pool).hash8(IMAGES)
        for lam, form, pool in itertools.product(zeros, UNIFORMITY_FORMS, pools)
    }
    assert len(names) == 1
    assert resolve(lam=0.1).hash8(IMAGES) != resolve(lam=0.1, pool="avg").hash8(IMAGES)


def test_an_int_is_taken_for_a_float_and_a_list_for_a_tuple():
    assert resolve(lam=1).hash8(IMAGES) == resolve(lam=1.0).hash8(IMAGES)
    assert resolve(classes=["1", "2"]) == resolve(classes=("1", "2"))
    assert resolve(lam=None) == resolve()
    assert resolve(lam="1e-2").lam == 0.01  # YAML reads 1e-2 as text


def test_the_warm_up_keeps_its_share_of_the_epochs():
    assert resolve(epochs=12).warmup_epochs == pytest.approx(1)
    assert resolve(epochs=12, warmup_epochs=3).warmup_epochs == 3
    assert resolve("cifar10-vit-tiny", epochs=20).warmup_epochs == pytest.approx(2)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().lam = 1  # type: ignore[misc]
