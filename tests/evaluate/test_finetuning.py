"""Finetuning: the recipe that timm is given, what it sees, what is reported and what is kept."""

import json
import math
import pickle
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import few, folder_config, image_folder, small

from lib.data import load, notes, streaming, validation_mask
from lib.errors import InputError, NonFiniteLoss
from lib.evaluate import finetuning as ft
from lib.evaluate.finetuning import Finetuning, Job, build, finetune, job_for, labelled
from lib.evaluate.randaugment import Augmented, kept_randomness, seed_all
from lib.evaluate.recipes import RECIPES, Recipe, recipe_for
from lib.masking import masks_from_noise
from lib.models import pool_tokens
from lib.presets import PRESETS
from lib.runs import open_run, outputs
from lib.runs.files import load_state, load_weights, save_state, save_weights
from lib.train import train

FULL = Recipe(epochs=3, batch_size=32, warmup_epochs=1, augment="none")
PLAIN = recipe_for("digits-vit-nano", epochs=3, batch_size=32)


@pytest.fixture
def run_and_data():
    config = small(epochs=1)
    data = few(config)
    return train(config, data), data


def job(run_and_data, recipe=PLAIN, fraction=1.0, seed=0, scratch=False):
    run, data = run_and_data
    return job_for(run.config, recipe, fraction, seed, scratch, data)


def test_the_recipe_is_mae_table_9_and_every_preset_has_one():
    r = Recipe()
    assert (r.epochs, r.batch_size, r.base_lr, r.warmup_epochs, r.weight_decay) == (
        100,
        1024,
        1e-3,
        5,
        0.05,
    )
    assert (r.layer_decay, r.drop_path, r.label_smoothing, r.mixup, r.cutmix) == (
        0.75,
        0.1,
        0.1,
        0.8,
        1.0,
    )
    assert r.rand_augment == "rand-m9-mstd0.5-inc1"
    assert set(RECIPES) == set(PRESETS)
    assert recipe_for("imagenet100-vit-base") == r


def test_the_warm_up_keeps_its_share_and_none_keeps_the_field():
    assert recipe_for("imagenet100-vit-base", epochs=20).warmup_epochs == 1
    assert recipe_for("imagenet100-vit-base", epochs=20, warmup_epochs=3.0).warmup_epochs == 3
    assert recipe_for("cifar10-vit-micro", base_lr=None, mixup=0.0) == Recipe(
        10, 256, 1e-3, 1.0, mixup=0.0, augment="crop"
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"epochs": 0}, "epochs must be a whole number, at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number, at least 1, got 2.5"),
        ({"batch_size": 1}, "batch_size must be a whole number, at least 2, got 1"),
        ({"base_lr": 0.0}, "base_lr must be a number, above 0, got 0.0"),
        ({"base_lr": math.inf}, "base_lr must be a number, above 0, got inf"),
        ({"warmup_epochs": 200.0}, "warmup_epochs must be a number, at least 0 and at most 100"),
        ({"weight_decay": -1.0}, "weight_decay must be a number, at least 0, got -1.0"),
        ({"mixup": -1.0}, "mixup must be a number, at least 0, got -1.0"),
        ({"layer_decay": math.nan}, "layer_decay must be a number, at least 0 and at most 1"),
        ({"drop_path": 2.0}, "drop_path must be a number, at least 0 and at most 1, got 2.0"),
        ({"label_smoothing": True}, "label_smoothing must be a number, .* got True"),
        ({"rand_augment": "foo"}, "rand_augment must be a policy of timm, such as rand-m9"),
        ({"augment": "flips"}, "augment must be one of"),
        ({"pool": "mean"}, "pool must be one of token, avg, got 'mean'"),
    ],
)
def test_an_impossible_recipe_is_one_line(fields, message):
    with pytest.raises(InputError, match=message) as raised:
        Recipe(**fields)
    assert "\n" not in str(raised.value)


def test_layers_learn_at_rates_that_decay_towards_the_pixels(run_and_data):
    """timm's scheduler must apply the shares: torch's own would give every layer the head's."""
    data = run_and_data[1]
    tuning = Finetuning(job(run_and_data, Recipe(epochs=4, batch_size=32, warmup_epochs=1)), data)
    named = {id(p): n for n, p in tuning.model.named_parameters()}
    expected = {
        "patch_embed": 0.75**2,
        "cls_token": 0.75**2,
        "blocks.0": 0.75,
        "norm": 0.75,
        "head": 1.0,
    }
    peak, warm, total = 1e-3 * 32 / 256, tuning.steps, 4 * tuning.steps
    for step in (1, warm, warm + 1, (warm + total) // 2, total):
        tuning.schedule.step_update(step)
        cosine = 1e-6 + (peak - 1e-6) * 0.5 * (
            1 + math.cos(math.pi * (step - warm) / (total - warm))
        )
        rate = peak * step / warm if step < warm else cosine
        rate = rate if step < total else 1e-6
        for group in tuning.optimizer.param_groups:
            for p in group["params"]:
                share = next(v for k, v in expected.items() if named[id(p)].startswith(k))
                assert group["lr"] == pytest.approx(rate * share, rel=1e-6)
    for group in tuning.optimizer.param_groups:
        for p in group["params"]:
            decays = p.ndim > 1 and named[id(p)] != "cls_token"
            assert group["weight_decay"] == (0.05 if decays else 0)


def test_the_model_starts_as_the_runs_encoder_with_a_small_head(run_and_data):
    run, data = run_and_data
    x = data.normalization("dataset")(data.test.images[:8])
    everything = masks_from_noise(torch.arange(16).expand(8, -1), 16)
    for pool in ("token", "avg"):
        model = build(job(run_and_data, recipe_for("digits-vit-nano", pool=pool)), 10).eval()
        with torch.no_grad():
            feature = pool_tokens(run.load_model().encode(x, everything), pool)
            torch.testing.assert_close(model(x), model.head(feature), rtol=1e-4, atol=1e-7)
        assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.3)


def test_scratch_starts_from_seeded_random_weights_and_one_rate(run_and_data):
    run, data = run_and_data
    first, again, other = (
        build(job(run_and_data, seed=s, scratch=True), 10).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not torch.equal(
        first["blocks.0.attn.qkv.weight"],
        build(job(run_and_data), 10).state_dict()["blocks.0.attn.qkv.weight"],
    )
    assert (
        finetune(run.config, PLAIN, 0.1, scratch=True, data=data)["inputs"]["recipe"]["layer_decay"]
        == 1
    )


def test_scratch_is_shared_by_runs_and_a_finetuning_is_not():
    def path(config, recipe=PLAIN, fraction=1.0, seed=0, **fields):
        fields = {"scratch": False, "images": "a", "streamed": False, "weights": "w", **fields}
        return Job(config, recipe, fraction, seed, **fields).path

    mae, umae = small(lam=0.0), small()
    assert path(mae, scratch=True) == path(umae, scratch=True)
    assert path(mae) != path(umae)
    for other in ({"embed_dim": 32}, {"decoder_dim": 32}, {"decoder_depth": 2}):
        assert path(mae, scratch=True) != path(small(**other), scratch=True)  # other first weights
    assert path(mae, PLAIN) == path(mae, PLAIN, streamed=True)
    cropped = replace(PLAIN, augment="resized_crop")
    assert path(mae, cropped) != path(mae, cropped, streamed=True)  # whose crops are others
    settings = [(r, f, s) for r in (PLAIN, FULL) for f in (0.1, 1.0) for s in (0, 1)]
    assert len({path(mae, *chosen) for chosen in settings}) == 8
    assert path(mae).is_relative_to(open_run(mae, "a").folder)
    assert path(mae, scratch=True).is_relative_to(outputs() / "scratch")
    for scratch in (False, True):
        changed = {path(mae, scratch=scratch, images=i, weights=w) for i in "ab" for w in "vw"}
        assert len(changed) == 4


def test_labels_are_a_nested_share_of_every_class_outside_the_validation_split():
    labels = torch.arange(1000) % 10
    one, ten, full = (set(labelled(labels, f, 0).tolist()) for f in (0.01, 0.1, 1.0))
    assert one < ten < full
    assert full == set((~validation_mask(labels)).nonzero().squeeze(1).tolist())
    assert (len(one), len(ten)) == (10, 90)
    for ids in (one, ten):
        assert labels[list(ids)].bincount().unique().numel() == 1
    assert set(labelled(labels, 0.1, 1).tolist()) != ten
    assert len(labelled(labels, 1e-6, 0)) == 10  # at least one image a class


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_share_of_labels_is_refused(fraction):
    with pytest.raises(InputError, match=r"fraction of the labels must be in \(0, 1\]"):
        labelled(torch.arange(20) % 2, fraction, 0)


def test_finetuning_beats_chance_and_its_frozen_start():
    """A rank-starved small model after an epoch of pretraining; chance is 10 %."""
    run = train(small(epochs=1))
    found = finetune(run.config, recipe_for("digits-vit-nano", epochs=3))
    assert min(found["best"], found["last"]) > 25
    assert found["history"][-1]["loss"] < found["history"][0]["loss"]
    assert (found["labels"], found["steps"]) == (1295, 3 * 20)


def test_a_share_of_the_labels_gets_the_root_of_the_steps(run_and_data):
    run, data = run_and_data
    full, tenth = (finetune(run.config, PLAIN, f, data=data) for f in (1.0, 0.09))
    assert full["steps"] == 3 * (full["labels"] // 32)
    assert tenth["steps"] == 3 * round(0.3 * (full["labels"] // 32))


def test_with_everything_on_and_an_odd_number_of_labels(run_and_data):
    run, data = run_and_data
    found = finetune(run.config, FULL, 0.1, data=data)
    assert math.isfinite(found["history"][-1]["loss"])


def test_the_epoch_is_chosen_on_validation_and_never_on_test(run_and_data, monkeypatch):
    run, data = run_and_data
    on_validation, on_test = [10.0, 30.0, 30.0, 20.0], [50.0, 60.0, 70.0, 99.0]

    def train_epoch(self, epoch, bar):
        with torch.no_grad():
            self.model.head.bias.fill_(epoch)
        return 1.0

    def accuracy(self, split):
        return (on_validation if split == "validation" else on_test)[int(self.model.head.bias[0])]

    monkeypatch.setattr(Finetuning, "train_epoch", train_epoch)
    monkeypatch.setattr(Finetuning, "accuracy", accuracy)
    found = finetune(run.config, recipe_for("digits-vit-nano", epochs=4), data=data)
    assert (found["best"], found["last"]) == (60.0, 99.0)
    assert (found["best_epoch"], found["best_validation"]) == (2, 30.0)


PROVENANCE = {"commit", "torch", "timm", "threads", "inputs"}
DECIDES = {"recipe", "fraction", "seed", "scratch", "encoder", "images", "weights"}


def test_it_is_done_once_and_leaves_the_callers_random_numbers_alone(run_and_data, monkeypatch):
    run, data = run_and_data
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = finetune(run.config, PLAIN, 0.3, data=data)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    file = job(run_and_data, fraction=0.3).path
    assert json.loads(file.read_text()) == first
    assert set(first) >= PROVENANCE
    assert set(first["inputs"]) >= DECIDES
    monkeypatch.setattr(ft, "Finetuning", None)
    assert finetune(run.config, PLAIN, 0.3, data=data) == first


def corrected(data):
    """The same images with the labels of two classes exchanged, as `load` would fingerprint it."""
    labels = data.train.labels.clone()
    labels[data.train.labels == 0], labels[data.train.labels == 1] = 1, 0
    train = replace(data.train, labels=labels)
    return replace(data, train=train, fingerprint="f" * 16)


def test_a_scratch_result_on_other_labels_is_kept_and_not_used(run_and_data, capsys):
    run, data = run_and_data
    old = finetune(run.config, PLAIN, scratch=True, data=data)
    assert "measured anew" not in capsys.readouterr().out
    new = finetune(run.config, PLAIN, scratch=True, data=corrected(data))
    said = [s for s in capsys.readouterr().out.splitlines() if "measured anew" in s]
    assert len(said) == 1 and "from scratch" in said[0]
    assert new["history"] != old["history"]
    assert finetune(run.config, PLAIN, scratch=True, data=data) == old


def test_other_first_weights_are_another_finetuning(run_and_data, capsys):
    run, data = run_and_data
    old = finetune(run.config, PLAIN, data=data)
    path = run.weights_path()
    save_weights(path, {k: 1.1 * v for k, v in load_weights(path).items()})
    new = finetune(run.config, PLAIN, data=data)
    assert new["inputs"]["weights"] != old["inputs"]["weights"]
    assert new["history"] != old["history"]
    assert f"of {run.folder.name}" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_result(run_and_data):
    run, data = run_and_data
    recipe = recipe_for(
        "digits-vit-nano", epochs=2, batch_size=32, mixup=0.8, cutmix=1.0, drop_path=0.1
    )
    first = finetune(run.config, recipe, data=data)
    job(run_and_data, recipe).path.unlink()
    torch.rand(3), np.random.rand(3)  # the caller's generators must not matter
    again = finetune(run.config, recipe, data=data)
    assert again["history"] == first["history"]
    assert finetune(run.config, recipe, seed=1, data=data)["history"] != first["history"]


def test_a_killed_finetuning_goes_on_from_its_last_epoch(run_and_data, monkeypatch):
    run, data = run_and_data
    whole = finetune(run.config, FULL, data=data)
    path, state = job(run_and_data, FULL).path, job(run_and_data, FULL).state_path
    path.unlink()
    done, real = [], Finetuning.train_epoch

    def killed(self, epoch, bar):
        if epoch == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(epoch)
        return real(self, epoch, bar)

    monkeypatch.setattr(ft, "SAVE_SECONDS", -1)
    monkeypatch.setattr(Finetuning, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(run.config, FULL, data=data)
    assert state.is_file() and not path.is_file()
    done.append("resumed")
    save_state(state, {**load_state(state), "seconds": 1000.0})
    resumed = finetune(run.config, FULL, data=data)
    assert 1000 < resumed["seconds"] < 2000  # of both attempts
    assert done == [0, 1, "resumed", 2]
    for key in ("history", "best", "last", "best_epoch"):
        assert resumed[key] == whole[key]
    assert not state.exists()


def test_a_run_that_is_not_finished_cannot_be_finetuned():
    with pytest.raises(InputError, match=r"no weights at .*; train this run"):
        finetune(small(), PLAIN, data=few(small()))


def test_other_data_than_the_runs_is_refused(run_and_data):
    run, data = run_and_data
    data.fingerprint = "0" * 16
    with pytest.raises(InputError, match="no weights"):
        finetune(run.config, PLAIN, data=data)


def test_a_loss_that_is_not_finite_stops_and_leaves_no_result(run_and_data):
    run, data = run_and_data
    with pytest.raises(NonFiniteLoss, match="not finite in epoch"):
        finetune(run.config, recipe_for("digits-vit-nano", epochs=3, base_lr=1e30), data=data)
    assert not list((run.folder / "finetune").glob("*.json"))


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_decided_by_seed_and_place_and_never_fails(channels):
    """Among 1,500 draws are magnitudes that timm cuts at 10, which Pillow would refuse."""
    data = few(small())
    generator = torch.Generator().manual_seed(0)
    data.train.images = torch.randint(
        0, 256, (20, channels, 8, 8), generator=generator, dtype=torch.uint8
    )
    data.mean = torch.full((channels,), 0.5)
    order = torch.arange(1500) % 20
    with kept_randomness():
        seen = torch.stack(list(Augmented(data, order, Recipe(), (0, 0))))
        again = Augmented(data, order, Recipe(), (0, 0))
        assert torch.equal(again[1234], seen[1234])
        assert not torch.equal(
            torch.stack([Augmented(data, order, Recipe(), (0, 1))[i] for i in range(20)]), seen[:20]
        )
        off = Augmented(data, order, PLAIN, (0, 0))
        assert torch.equal(off[7], data.train.images[7])
    assert seen.shape == (1500, channels, 8, 8) and seen.dtype == torch.uint8
    changed = (seen != data.train.images[order]).flatten(1).any(1).double().mean().item()
    assert 0.5 < changed < 0.95  # each of two operations happens with probability 1/2


# ---- streamed folders ----------------------------------------------------------------------------

WITH_RANDAUGMENT = Recipe(epochs=1, batch_size=4, warmup_epochs=0)


@pytest.fixture
def streamed(tmp_path):
    """A run on a streamed folder of 12 training images."""
    config = folder_config(image_folder(tmp_path / "images"), stream="always", epochs=1)
    data = load(**config.data_fields)
    return train(config, data), data


def history(streamed, workers):
    """Of a finetuning that is measured anew."""
    run, data = streamed
    config = replace(run.config, workers=workers)
    found = finetune(config, WITH_RANDAUGMENT, data=data)
    job_for(config, WITH_RANDAUGMENT, 1.0, 0, False, data).path.unlink()
    return found["history"]


def test_neither_workers_nor_pipes_change_a_streamed_finetuning(
    streamed, tmp_path, monkeypatch, capsys
):
    expected = history(streamed, 0)
    assert history(streamed, 2) == expected
    assert "pipes" not in capsys.readouterr().out
    monkeypatch.setattr(streaming, "SHARED_MEMORY", str(tmp_path))
    little = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(streaming, "PREFETCH", 2**14)  # so that 3 MB are too little
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    streaming._say_that_pipes_are_used.cache_clear(), notes.say_once.cache_clear()
    assert history(streamed, 2) == expected
    said = [line for line in capsys.readouterr().out.splitlines() if "pipes" in line]
    assert len(said) == 1 and "has 3 MB free" in said[0] and "workers 0 (--workers 0)" in said[0]


def test_an_image_that_breaks_while_a_finetuning_reads_it_is_one_line(streamed, tmp_path):
    path = streamed[1].train.paths[3]
    path.write_text("gone")
    for workers in (0, 1):
        with pytest.raises(InputError) as caught:
            history(streamed, workers)
        assert str(caught.value).startswith(f"cannot read the image {path} (Unidentified")
        assert "\n" not in str(caught.value)


def test_augmented_images_can_be_sent_to_a_worker_that_is_started_anew(streamed):
    """As on macOS, where workers are not forked."""
    images = Augmented(streamed[1], torch.arange(12), Recipe(), (0, 0))
    sent = pickle.loads(pickle.dumps(images))
    with kept_randomness():
        assert all(torch.equal(sent[i], images[i]) for i in range(12))


def test_the_callers_generators_stay_as_they_are_after_an_error():
    before = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    with pytest.raises(KeyboardInterrupt), kept_randomness():
        seed_all(0)
        raise KeyboardInterrupt
    after = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert after == before
