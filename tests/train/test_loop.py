"""The training loop: what is the same, what is kept, what stops it."""

import dataclasses
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from support import (
    at_step,
    content,
    elsewhere,
    few,
    folder_config,
    image_folder,
    lines,
    run_of,
    same_tensors,
    small,
    weights,
)

import lib.compute.device
import lib.runs.folder
import lib.train.loop
from lib.compute import cpu_kernels as kernels
from lib.data import load, validation_mask
from lib.errors import InputError, Interrupted, NonFiniteLoss
from lib.losses import UNIFORMITY_FORMS
from lib.masking import random_masks
from lib.models import MAE
from lib.presets import resolve
from lib.runs import provenance
from lib.runs.files import load_state, load_weights
from lib.runs.provenance import processor
from lib.train import train, train_all
from lib.train.checkpoint import Checkpoint
from lib.train.loop import Trainer
from lib.train.objective import Objective, learning_rate

STEPS = 3  # an epoch of few(): 200 images, batches of 64


# the same


def test_same_seed_same_weights_and_metrics_whatever_the_global_random_state(monkeypatch, tmp_path):
    runs = []
    for name in ("a", "b"):
        elsewhere(monkeypatch, tmp_path, name)
        torch.manual_seed(len(runs))
        before = torch.get_rng_state()
        runs.append(train(small(), few(small())))
        assert torch.equal(before, torch.get_rng_state())
    assert content(runs[0]) == content(runs[1])
    assert not same_tensors(weights(runs[0]), weights(train(small(seed=1), few(small(seed=1)))))


# With the CPU kernels, where the machine can.
LOW = {"precision": "bf16", "embed_dim": 32, "decoder_dim": 32}


@pytest.mark.parametrize(
    "fields", [{}, {"accum_steps": 2}, {"augment": "resized_crop", "uniformity": "released"}, LOW]
)
@pytest.mark.parametrize("step", range(2 * STEPS))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_saves_and_resuming_equals_not_stopping(
    monkeypatch, tmp_path, fields, step, number, capfd
):
    if number == signal.SIGTERM and (fields or step % 2):
        return  # the same code path: every other step is enough
    config = small(**fields)
    whole = train(config, few(config))
    elsewhere(monkeypatch, tmp_path, "interrupted")
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    if step < 2 * STEPS - 1:
        with pytest.raises(
            Interrupted, match=f"stopped at step {step + 1}, saved; the same command resumes"
        ):
            train(config, few(config))
        assert run_of(config).result is None
    resumed = train(config, few(config))
    assert (f"resuming at step {step + 1} " in capfd.readouterr().out) == (step < 2 * STEPS - 1)
    assert content(resumed) == content(whole)
    assert [m["epoch"] for m in resumed.metrics()] == [1, 2]
    timed = [line["steps"] for line in lines(resumed.folder / "timing.jsonl")]
    done = step + 1  # the epoch that was cut there counts only the steps after it
    assert timed == [STEPS - done % STEPS * (k == done // STEPS) for k in range(2)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_result_names_the_commits_of_all_its_attempts_and_how_it_was_computed(monkeypatch):
    made = iter(["first", "second", "second"])
    monkeypatch.setattr(
        lib.runs.folder, "provenance", lambda: {**provenance(), "commit": next(made)}
    )
    config = small(epochs=3)
    for step in (1, 4):
        at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, few(config))
    run = train(config, few(config))
    assert [attempt["commit"] for attempt in run.record["attempts"]] == ["first", "second"]
    assert run.result["commit"] == "first then second"
    assert (run.result["precision"], run.result["kernels"]) == ("fp32", "torch")
    assert run.result["time"] == run.record["time"] >= run.record["attempts"][1]["time"]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_result_says_in_which_precision_it_was_computed(monkeypatch, bf16):
    monkeypatch.setattr(lib.compute.device, "has_bf16", lambda _: bf16)
    run = train(small(**LOW), few(small(**LOW)))
    assert run.result["precision"] == ("bf16" if bf16 else "fp32")
    assert run.result["kernels"] == ("cpu" if bf16 and kernels.load()[0] else "torch")


@pytest.mark.parametrize(
    "every,step,back_at", [(1, 4, 3), (1, 2, 0), (2, 11, 6), (2, 9, 6), (3, 8, 0)]
)
def test_a_crash_goes_back_to_the_last_checkpoint_and_ends_the_same(
    monkeypatch, tmp_path, every, step, back_at, capfd
):
    config = small(epochs=4, checkpoint_every=every, eval_every=1)
    whole = train(config, few(config))
    elsewhere(monkeypatch, tmp_path, "crashed")

    def crash():
        raise ArithmeticError

    at_step(monkeypatch, step, crash)
    with pytest.raises(ArithmeticError):
        train(config, few(config))
    assert content(train(config, few(config))) == content(whole)
    assert (f"resuming at step {back_at} " in capfd.readouterr().out) == (back_at > 0)


def test_a_finished_run_is_reused_without_training_or_writing(monkeypatch, capsys):
    config = small()
    run = train(config, few(config))
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")}
    capsys.readouterr()
    monkeypatch.setattr(lib.train.loop, "Trainer", lambda *_: pytest.fail("no training is needed"))
    same = dataclasses.replace(config, workers=7, checkpoint_every=9)
    assert train(same).result == run.result
    assert capsys.readouterr().out.startswith(f"reusing {run.folder.name}: finished ")
    assert {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")} == before


def test_a_run_that_another_process_finished_meanwhile_is_reused(monkeypatch, capsys):
    """The result appears between the first look and the lock."""
    config = small()
    run = train(config, few(config))
    result = (run.folder / "result.json").read_bytes()
    (run.folder / "result.json").unlink()

    def slow_load(**_):
        (run.folder / "result.json").write_bytes(result)
        return few(config)

    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(lib.train.loop, "load", slow_load)
    capsys.readouterr()
    assert train(config).result == run.result
    assert "reusing" in capsys.readouterr().out
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == before


def test_forms_of_the_absent_term_share_one_run_and_its_numbers(monkeypatch, tmp_path):
    configs = [
        small(lam=0, uniformity=u, pool=p) for u in UNIFORMITY_FORMS for p in ("token", "avg")
    ]
    first = train(configs[0], few(configs[0]))
    assert {train(c, few(c)).folder for c in configs} == {first.folder}
    elsewhere(monkeypatch, tmp_path, "other")
    assert content(train(configs[-1], few(configs[-1]))) == content(first)


def test_accumulated_steps_equal_whole_batches_up_to_rounding():
    """With lam = 0: the reconstruction is a mean over images, the spectral term a mean per part."""
    one, two, eight = (
        train(c, few(c)) for a in (1, 2, 8) for c in [small(lam=0, accum_steps=a, precision="fp64")]
    )
    for other in (two, eight):
        for (name, a), b in zip(weights(one).items(), weights(other).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


def test_threads_do_not_change_order_crops_or_masks(monkeypatch):
    config = small(augment="resized_crop")
    batches = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            trainer = Trainer(config, few(config))
            batches.append([b for epoch in (0, 1) for b in trainer.micro_batches(epoch)])
        finally:
            torch.set_num_threads(1)
    assert len(batches[0]) == 2 * STEPS
    for (x, m, y), (x2, m2, y2) in zip(*batches, strict=True):
        assert torch.equal(x, x2) and torch.equal(m.ids_keep, m2.ids_keep) and torch.equal(y, y2)


def test_an_epoch_shows_every_image_at_most_once_in_another_order_each_time():
    config = small(batch_size=50)
    data = few(config)
    data.train.labels = torch.arange(200)  # the label tells the image
    trainer = Trainer(config, data)
    trainer.labels = data.train.labels
    orders = [torch.cat([y for _, _, y in trainer.micro_batches(epoch)]) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(200))
    assert not torch.equal(*orders)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_equals_the_run_in_memory(tmp_path, monkeypatch, workers):
    root = image_folder(tmp_path / "images", per_class=8)
    runs = []
    for stream in ("never", "always"):
        elsewhere(monkeypatch, tmp_path, stream)
        config = folder_config(root, stream=stream, workers=workers, epochs=1, augment="flip")
        runs.append(train(config))
    assert content(runs[0]) == content(runs[1])


# what is learned from what


def trained(config, data) -> dict[str, torch.Tensor]:
    """Model and online heads after training, without a run folder's reuse."""
    trainer, run = Trainer(config, data), run_of(config)
    with run.lock():
        trainer.fit(Checkpoint(run, trainer.objective, trainer.optimizer, trainer.device), [])
    return {k: v.clone() for k, v in trainer.objective.state_dict().items()}


def test_images_of_another_size_or_depth_than_the_configs_are_refused(monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained"))
    grey, wide = few(small()), few(small(image_size=16))
    colour = replace(grey, mean=grey.mean.expand(3))
    for data, shape in ((wide, "1 x 16 x 16"), (colour, "3 x 8 x 8")):
        line = f"of 1 x 8 x 8 values, the data has {shape}; load it with"
        with pytest.raises(InputError, match=line):
            train(small(), data)
        with pytest.raises(InputError, match=line):
            train_all([small()], data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_test_image_stops_a_streamed_run_before_its_first_step(
    tmp_path, monkeypatch, workers
):
    root = image_folder(tmp_path / "images", per_class=8, size=(64, 64), suffix=".jpg")
    path = root / "val/cat/1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=f"cannot read the image {path}"):
        train(folder_config(root, stream="always", workers=workers))


def test_validation_labels_never_train_the_online_layer_and_no_label_trains_the_encoder(
    monkeypatch,
):
    config = small()
    held = validation_mask(few(config).train.labels)
    monkeypatch.setattr(lib.train.loop, "validation_mask", lambda labels: held)
    base = trained(config, few(config))
    changed = {}
    for name, where in (("validation", held), ("training", ~held)):
        data = few(config)
        data.train.labels = torch.where(where, (data.train.labels + 1) % 10, data.train.labels)
        changed[name] = trained(config, data)
    assert same_tensors(base, changed["validation"])
    differing = {k for k in base if not torch.equal(base[k], changed["training"][k])}
    assert differing and all(k.startswith("heads.") for k in differing)


def test_test_images_train_nothing():
    config = small()
    data = few(config)
    data.test.images = 255 - data.test.images
    data.test.labels = (data.test.labels + 1) % 10
    assert same_tensors(trained(config, few(config)), trained(config, data))


def test_the_gradient_is_that_of_reconstruction_plus_lam_times_uniformity():
    from lib.losses import reconstruction_loss, uniformity_loss

    for fields in (
        {"lam": 0.7},
        {"lam": 0.7, "pool": "avg", "uniformity": "euclidean"},
        {"lam": 0},
    ):
        config = small(**fields)
        torch.manual_seed(0)
        objective = Objective(config, 10).double()
        images, masks = torch.randn(6, 1, 8, 8).double(), random_masks(6, 16, 0.75)
        total, terms = objective(images, masks, torch.tensor([0, 1, -1, 2, 3, -1]))
        total.backward()
        got = {n: p.grad for n, p in objective.mae.named_parameters() if p.requires_grad}
        objective.mae.zero_grad(set_to_none=True)
        latent, pred = objective.mae(images, masks)
        feature = latent[:, 1:].mean(1) if config.pool == "avg" else latent[:, 0]
        reconstruction = reconstruction_loss(pred, objective.mae.targets(images, masks))
        uniformity = uniformity_loss(feature, config.uniformity)
        loss = reconstruction + config.lam * uniformity
        loss.backward()
        for name, p in objective.mae.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(got[name], p.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(terms, torch.stack([loss, reconstruction, uniformity]).detach())


def test_weight_decay_is_on_matrices_only():
    trainer = Trainer(small(), few(small()))
    names = {id(p): n for n, p in trainer.objective.named_parameters()}
    groups = [{names[id(p)] for p in g["params"]} for g in trainer.optimizer.param_groups]
    decay = [g["weight_decay"] for g in trainer.optimizer.param_groups]
    assert decay == [0, 0.05, 0]
    assert {n.rsplit(".", 1)[-1] for n in groups[1]} == {"weight"}
    assert not any("norm" in n or n.endswith("bias") or "_token" in n for n in groups[1])
    assert {"mae.encoder.cls_token", "mae.mask_token", "mae.encoder.norm.weight"} <= groups[0]
    assert all(n.startswith("heads.") for n in groups[2])
    trainable = {n for n, p in trainer.objective.named_parameters() if p.requires_grad}
    assert set.union(*groups) == trainable and sum(map(len, groups)) == len(trainable)
    assert trainer.optimizer.defaults["betas"] == (0.9, 0.95)


def test_the_rate_warms_up_linearly_and_falls_as_a_half_cosine():
    c = small(epochs=10, warmup_epochs=2, base_lr=1e-3, batch_size=128)
    rates = [learning_rate(c, s, 5) for s in range(50)]
    peak = 1e-3 * 128 / 256
    assert rates[:10] == pytest.approx([peak * (s + 1) / 10 for s in range(10)])
    assert rates[10:] == pytest.approx(
        [peak * 0.5 * (1 + math.cos(math.pi * s / 40)) for s in range(40)]
    )
    assert learning_rate(small(warmup_epochs=0), 0, 5) == small().peak_lr
    full = small(epochs=2, warmup_epochs=2)
    assert learning_rate(full, 9, 5) == pytest.approx(full.peak_lr)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_other_precisions_train(precision):
    config = small(precision=precision)
    run = train(config, few(config))
    assert math.isfinite(run.result["test_reconstruction"])
    assert {t.dtype for t in load_weights(run.folder / "model.safetensors").values()} == {
        torch.float64 if precision == "fp64" else torch.float32
    }


RECIPES = [
    {"mask_ratio": 0.0}, {"mask_ratio": 0.93}, {"norm_pix_loss": True}, {"normalize": "unit"},
    {"augment": "crop"}, {"pool": "avg"}, {"uniformity": "euclidean"}, {"snapshots": 0},
]  # fmt: skip


@pytest.mark.parametrize("fields", RECIPES)
def test_every_kind_of_recipe_trains(fields):
    config = small(**fields)
    run = train(config, few(config))
    assert [m["step"] for m in run.metrics()] == [3, 6] and run.result["steps"] == 6


# what is written


def test_a_finished_run_holds_metrics_weights_snapshots_and_the_encoder():
    import timm

    config = small(epochs=5, snapshots=2, eval_every=2)
    run = train(config, few(config))
    assert [m["epoch"] for m in run.metrics()] == [2, 4, 5]
    assert run.snapshot_epochs() == [0, 2, 5]
    assert same_tensors(run.load_model(5).state_dict(), weights(run))
    first = run.load_model(0).state_dict()
    torch.manual_seed(config.seed)
    assert same_tensors(first, MAE(config).state_dict())
    encoder = timm.create_model(f"local-dir:{run.folder / 'encoder'}", pretrained=True)
    assert same_tensors(encoder.state_dict(), run.load_model().encoder.state_dict())
    assert sorted(os.listdir(run.folder)) == sorted(
        [
            "config.json",
            "encoder",
            "lock",
            "metrics.jsonl",
            "model.safetensors",
            "result.json",
            "snapshots",
            "timing.jsonl",
        ]
    )
    assert len(lines(run.folder / "timing.jsonl")) == 3
    assert run.record["fingerprint"] == few(config).fingerprint


def test_a_metrics_line_is_the_epochs_mean_and_the_result_is_measured_on_the_test_split():
    config = small(lam=0.5)
    run = train(config, few(config))
    for m in run.metrics():
        assert m["loss"] == pytest.approx(m["reconstruction"] + 0.5 * m["uniformity"], rel=1e-6)
        assert (
            0 <= m["validation_online_token_full"] <= 100 and 1 <= m["validation_rank_token"] <= 16
        )
    data = few(config)
    model = run.load_model()
    with torch.no_grad():
        x = data.normalization(config.normalize)(data.test.images)
        spread = model.encode(x, random_masks(200, 16, 0.0))[:, 0]
    assert run.result["test_reconstruction"] > 0 and spread.std() > 0


def test_accuracy_on_full_images_is_the_online_layers(monkeypatch):
    config = small()
    trainer = Trainer(config, few(config))
    with torch.no_grad():
        x = trainer.normalization(trainer.data.test.images)
        latent = trainer.objective.mae.encode(x, random_masks(200, 16, 0.0))
        expected = {"token": latent[:, 0], "avg": latent[:, 1:].mean(1)}
        for pool, feature in expected.items():
            hits = trainer.objective.heads[pool](feature).argmax(1) == trainer.data.test.labels
            assert trainer.measure("test")[f"test_online_{pool}_full"] == pytest.approx(
                100 * hits.double().mean().item(), abs=0.51
            )


# what stops it


@pytest.mark.parametrize("step", [3, 4])
def test_a_non_finite_loss_stops_names_the_step_and_keeps_the_last_checkpoint(
    monkeypatch, tmp_path, step
):
    config = small()
    whole = train(config, few(config))
    elsewhere(monkeypatch, tmp_path, "broken")
    # The weights are gone after this step, the loss in the next.
    at_step(monkeypatch, step, lambda: math.inf)
    text = rf"the loss is not finite at step {step + 1} \(epoch 1\); the last checkpoint is kept"
    with pytest.raises(NonFiniteLoss, match=text):
        train(config, few(config))
    state = load_state(run_of(config).folder / "state.pt")
    assert state["position"]["step"] == 3 and all(
        v.isfinite().all() for v in state["objective"].values()
    )
    assert content(train(config, few(config))) == content(whole)


@pytest.mark.parametrize("step", [2, 5])
def test_weights_lost_in_the_last_step_of_an_epoch_are_never_saved(monkeypatch, tmp_path, step):
    config = small()
    whole = train(config, few(config))
    elsewhere(monkeypatch, tmp_path, "broken")
    at_step(monkeypatch, step, lambda: math.inf)
    with pytest.raises(NonFiniteLoss, match=f"the weights are not finite after step {step} "):
        train(config, few(config))
    assert run_of(config).result is None
    assert content(train(config, few(config))) == content(whole)


def test_a_huge_rate_stops_too():
    config = small(base_lr=1e30)
    with pytest.raises(NonFiniteLoss, match="lower base_lr or lam, or use precision fp32"):
        train(config, few(config))


def test_a_run_on_images_that_changed_is_kept_and_a_new_one_is_made_beside_it(monkeypatch, capsys):
    config = small()
    first = train(config, few(config))
    before = content(first)
    other = few(config, 150)
    other.fingerprint = "0123456789abcdef"
    capsys.readouterr()
    second = train(config, other)
    assert second.folder != first.folder and content(first) == before
    said = capsys.readouterr().out
    assert f"not reusing {first.folder.name}: it was trained on other images under the same" in said
    assert second.record["fingerprint"] == other.fingerprint
    assert train(config, few(config)).folder == first.folder
    assert "not reusing" not in capsys.readouterr().out


def test_outside_the_main_thread_training_works_without_signals():
    from concurrent.futures import ThreadPoolExecutor

    config = small()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, config, few(config)).result().result["steps"] == 6


def test_a_whole_epoch_of_the_default_preset_learns():
    config = resolve(epochs=3, device="cpu")
    run = train(config, load(**config.data_fields))
    losses = [m["reconstruction"] for m in run.metrics()]
    assert losses[-1] < losses[0] and run.result["test_reconstruction"] < 0.9


def test_the_processor_has_a_name(monkeypatch):
    assert processor().strip()
    monkeypatch.setattr(
        "pathlib.Path.read_text",
        lambda _: "flags: x\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: B\n",
    )
    assert processor() == "A CPU @ 2 GHz"
