"""Frozen features, the linear protocols, and what is kept on disk."""

import json
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import silhouette_score
from support import few, folder_config, image_folder, small

from lib.data import load, validation_mask
from lib.errors import InputError
from lib.evaluate import PROTOCOLS, Features, Probe, encode, evaluate, features, linear_accuracy
from lib.evaluate.finetuning import finetune
from lib.evaluate.probes import FROZEN, prepared
from lib.evaluate.recipes import recipe_for
from lib.evaluate.representation import knn_purity
from lib.notebook import table1
from lib.runs.files import load_weights, save_weights, write_json
from lib.train import train

# The package has functions of the same names.
features_module = sys.modules["lib.evaluate.features"]
probes_module = sys.modules["lib.evaluate.probes"]


@pytest.fixture
def run_and_data():
    config = small(epochs=1)
    data = few(config)
    return train(config, data), data


def blobs(n=300, d=6, classes=3, spread=0.05, seed=0):
    """Features around `classes` corners, split in three; every split has every class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.eye(d)[y] + spread * torch.randn(n, d, generator=generator)
    parts = {
        "train": slice(0, n // 2),
        "validation": slice(n // 2, 3 * n // 4),
        "test": slice(3 * n // 4, n),
    }
    return {s: x[i] for s, i in parts.items()}, {s: y[i] for s, i in parts.items()}


def accuracy(x, y, protocol, seed=0):
    return linear_accuracy(Features({"token": x}, y), protocol, seed=seed)


def test_features_are_timms_of_whole_images_in_order(run_and_data):
    run, data = run_and_data
    f = features(run, data)
    held = validation_mask(data.train.labels)
    with torch.no_grad():
        tokens = run.load_model().encoder.forward_features(
            data.normalization("dataset")(data.train.images)
        )
    for pool, expected in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1))):
        torch.testing.assert_close(f.x[pool]["train"], expected[~held], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f.x[pool]["validation"], expected[held], rtol=1e-4, atol=1e-5)
    assert torch.equal(f.y["train"], data.train.labels[~held])
    assert torch.equal(f.y["test"], data.test.labels)


def test_features_and_accuracies_are_computed_once(run_and_data, monkeypatch):
    run, data = run_and_data
    first = evaluate(run, "sgd", data=data)
    kept = features(run, data)
    monkeypatch.setattr(features_module, "encode", None)
    monkeypatch.setattr(probes_module, "linear_probe", None)
    assert evaluate(run, "sgd", data=data) == first
    assert torch.equal(features(run, data).x["avg"]["test"], kept.x["avg"]["test"])
    with pytest.raises(TypeError):
        evaluate(run, "sgd", seed=1, data=data)  # another probe is not the kept one


def test_a_kept_accuracy_is_the_one_of_fresh_features(run_and_data):
    run, data = run_and_data
    for protocol in FROZEN:
        kept = [evaluate(run, protocol, "avg", data=data) for _ in range(2)][1]
        fresh = linear_accuracy(features(run, data), protocol, "avg")
        assert kept == {k: v for k, v in fresh.items() if k != "train"}


def test_a_kept_file_says_what_decided_it_and_by_how_many_threads(run_and_data):
    run, data = run_and_data
    found = evaluate(run, Probe(epochs=1, lr=0.1), data=data)
    (file,) = (run.folder / "probes").glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["test"] == found["test"]
    inputs = kept["inputs"]
    assert inputs["probe"]["epochs"] == 1 and inputs["probe"]["lr"] == 0.1
    assert inputs["weights"] == run.weights_digest() != ""
    assert inputs["images"] == data.fingerprint
    assert kept["threads"] == torch.get_num_threads()


def test_other_weights_in_the_same_folder_are_measured_anew(run_and_data, capsys):
    run, data = run_and_data
    old, old_features = evaluate(run, "lbfgs", data=data), features(run, data)
    assert "measured anew" not in capsys.readouterr().out
    path = run.weights_path()
    generator = torch.Generator().manual_seed(0)
    noise = {k: torch.randn(v.shape, generator=generator) for k, v in load_weights(path).items()}
    save_weights(path, {k: v + noise[k] for k, v in load_weights(path).items()})
    new = evaluate(run, "lbfgs", data=data)
    said = [s for s in capsys.readouterr().out.splitlines() if "measured anew" in s]
    assert ["lbfgs of" in s for s in said].count(True) == 1
    assert ["features of" in s for s in said].count(True) == 1
    assert new != old
    assert not torch.equal(features(run, data).x["avg"]["test"], old_features.x["avg"]["test"])
    assert len(list((run.folder / "probes").glob("*.json"))) == 2


def test_other_images_than_the_runs_are_refused(run_and_data):
    run, data = run_and_data
    evaluate(run, "sgd", data=data)
    other = replace(data, fingerprint="0" * 16)
    with pytest.raises(InputError, match="trained on other images"):
        evaluate(run, "sgd", data=other)
    with pytest.raises(InputError, match="trained on other images"):
        features(run, other)


def test_a_run_keeps_the_mean_and_deviation_that_it_was_trained_with(run_and_data):
    """Those of a streamed folder differ a little from those in memory: the images are the same."""
    run, data = run_and_data
    expected = features(run, data)
    moments = {"mean": data.mean.tolist(), "std": data.std.tolist()}
    write_json(run.folder / "config.json", {**run.record, **moments})
    for file in (run.folder / "features").iterdir():
        file.unlink()
    found = features(run, replace(data, mean=data.mean + 0.01, std=1.01 * data.std))
    assert torch.equal(found.x["token"]["test"], expected.x["token"]["test"])


def test_corrected_labels_under_the_same_path_give_new_numbers(tmp_path):
    """The user's accident: probe, move images to their right class, probe again."""
    root = image_folder(tmp_path / "images", per_class=10)
    config = folder_config(root, epochs=1)
    before = train(config, load(**config.data_fields))
    old = features(before)
    (root / "train" / "cat" / "3.png").rename(root / "train" / "dog" / "moved.png")
    data = load(**config.data_fields)
    after = train(config, data)
    assert after.folder != before.folder
    new = features(after)
    assert new.y["train"].bincount().tolist() != old.y["train"].bincount().tolist()
    with pytest.raises(InputError, match="trained on other images"):
        evaluate(before, "knn")
    assert evaluate(after, "knn", data=data)["k"] == len(new.y["train"]) < 20


def test_every_protocol_gives_percentages_and_differs_by_pool(run_and_data):
    run, data = run_and_data
    for protocol in PROTOCOLS:
        for pool in ("token", "avg"):
            found = evaluate(run, protocol, pool, data=data)
            assert set(found) - {"converged", "iterations", "k"} == {"validation", "test"}
            assert all(0 <= found[s] <= 100 for s in ("validation", "test"))


def test_snapshots_are_probed_with_their_own_weights(run_and_data):
    run, data = run_and_data
    assert run.snapshot_epochs() == [0, 1]
    start, end = (features(run, data, e).x["token"]["test"] for e in (0, 1))
    assert torch.equal(end, features(run, data).x["token"]["test"])
    assert not torch.equal(start, end)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lbgfs",), "protocol must be one of online, sgd, mae, lbfgs, knn, got 'lbgfs'"),
        (("sgd", "mean"), "pool must be one of token, avg, got 'mean'"),
        (("online", "token", 0), "has no online accuracy at epoch 0"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(run_and_data, arguments, message):
    run, data = run_and_data
    with pytest.raises(InputError, match=message) as raised:
        evaluate(run, *arguments, data=data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"epochs": 0, "lr": 0.1}, "epochs must be a whole number, at least 1, got 0"),
        ({"epochs": 2.5, "lr": 0.1}, "epochs must be a whole number, at least 1, got 2.5"),
        ({"epochs": 1, "lr": 0.0}, "lr must be a number, above 0, got 0.0"),
        ({"epochs": 1, "lr": math.inf}, "lr must be a number, above 0, got inf"),
        ({"epochs": 1, "lr": 1.0, "batch_size": 0}, "batch_size must be a whole number"),
        ({"epochs": 1, "lr": 1.0, "warmup_epochs": 2}, "warmup_epochs must be a number"),
        ({"epochs": 1, "lr": 1.0, "weight_decay": -1.0}, "weight_decay must be a number"),
        ({"epochs": 1, "lr": 1.0, "prepare": "white"}, "prepare must be one of raw"),
        ({"epochs": 1, "lr": 1.0, "optimizer": "adamm"}, "did you mean 'adam"),
    ],
)
def test_a_probe_that_cannot_be_trained_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Probe(**fields)


def test_preparation_uses_the_training_part_only():
    x, _ = blobs(spread=1.0)
    standard, white = prepared(x, "standardised")["train"], prepared(x, "whitened")["train"]
    torch.testing.assert_close(standard.std(0), torch.ones(6))
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), rtol=0, atol=1e-4)
    moved = {**x, "test": x["test"] + 100}
    for how in ("centred", "scaled", "standardised", "whitened"):
        assert torch.equal(prepared(moved, how)["train"], prepared(x, how)["train"])
    assert prepared(x, "raw") is x
    lengths = prepared(x, "normalised")["test"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(lengths)))


def test_centring_and_one_size_leave_the_condition_as_it_is():
    x, _ = blobs(spread=1.0)
    larger = {split: 10 * v + 3 for split, v in x.items()}
    centred, one_size = (prepared(larger, how)["test"] for how in ("centred", "scaled"))
    torch.testing.assert_close(centred, larger["test"] - larger["train"].mean(0))
    size = (centred / one_size).mean()
    torch.testing.assert_close(one_size * size, centred)
    assert prepared(larger, "scaled")["train"].var(0).mean().item() == pytest.approx(1)
    torch.testing.assert_close(one_size, prepared(x, "scaled")["test"], rtol=1e-4, atol=1e-5)


def test_plain_sgd_on_whitened_features_is_preconditioned_sgd():
    """Full batches, no momentum: W on raw features with gradient times the inverse covariance."""
    x, y = blobs(spread=1.0)
    raw = x["train"] - x["train"].mean(0)
    white = prepared(x, "whitened")["train"]
    transform = probes_module.whitening(x["train"])
    inverse = transform @ transform.T
    w = {"white": torch.zeros(3, 6), "raw": torch.zeros(3, 6)}
    target = F.one_hot(y["train"], 3).float()
    for _ in range(5):
        for name, inputs in (("white", white), ("raw", raw)):
            error = (inputs @ w[name].T).softmax(1) - target
            gradient = error.T @ inputs / len(inputs)
            w[name] -= 0.5 * (gradient @ inverse if name == "raw" else gradient)
    torch.testing.assert_close(raw @ w["raw"].T, white @ w["white"].T, rtol=1e-3, atol=1e-4)


def test_weight_decay_shrinks_what_a_probe_learns():
    x, y = blobs(spread=0.7)
    free, decayed = (
        accuracy(x, y, Probe(20, 1.0, 32, weight_decay=w))["train"] for w in (0.0, 10.0)
    )
    assert free > decayed


def test_whitening_drops_directions_that_are_not_used():
    x, _ = blobs(spread=1.0)
    x = {s: torch.cat([v, v[:, :2].sum(1, keepdim=True)], 1) for s, v in x.items()}
    assert prepared(x, "whitened")["train"].shape[1] == 6


@pytest.mark.parametrize("prepare", ["raw", "standardised", "whitened"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_probe_separates_what_is_separable_and_not_noise(prepare, optimizer):
    x, y = blobs()
    probe = Probe(epochs=30, lr=10.0, batch_size=32, optimizer=optimizer, prepare=prepare)
    assert accuracy(x, y, probe) == {"train": 100.0, "validation": 100.0, "test": 100.0}
    noise = {
        s: torch.randn(v.shape, generator=torch.Generator().manual_seed(len(v)))
        for s, v in x.items()
    }
    assert accuracy(noise, y, probe)["test"] < 60  # chance is 33


def test_a_short_plain_probe_is_blind_where_a_standardised_one_sees():
    """What 03_linear_probe is about: a class direction a thousand times smaller than the others."""
    x, y = blobs(classes=2, spread=0.05)
    scale = torch.tensor([1e-3, 1e-3, 1, 1, 1, 1])
    x = {s: v * scale for s, v in x.items()}
    plain, standard = (
        accuracy(x, y, Probe(10, 0.1, 32, prepare=how))["test"] for how in ("raw", "standardised")
    )
    assert standard == 100
    assert plain < 80


def test_a_probe_is_a_function_of_its_seed():
    x, y = blobs(spread=0.7)
    probe = Probe(epochs=2, lr=0.1, batch_size=16)
    assert accuracy(x, y, probe, seed=1) == accuracy(x, y, probe, seed=1)
    state = torch.random.get_rng_state()
    accuracy(x, y, probe)
    assert torch.equal(state, torch.random.get_rng_state())


def test_knn_protocol_is_a_vote_of_twenty_by_cosine():
    x, y = blobs(spread=0.6)
    found = linear_accuracy(Features({"token": x}, y), "knn")
    assert found["k"] == 20
    train, test = (F.normalize(x[s], dim=1) for s in ("train", "test"))
    votes = F.one_hot(y["train"])[(test @ train.T).topk(20).indices].sum(1)
    clear = votes.topk(2, dim=1).values.diff(dim=1)[:, 0] != 0  # ties may be cut either way
    slow = (votes.argmax(1) == y["test"])[clear].double().mean().item()
    assert found["test"] == pytest.approx(
        100 * slow, abs=100 * (~clear).double().mean().item() + 1e-9
    )


def test_fewer_images_than_neighbours_lower_k_and_say_so():
    x, y = blobs(n=24)
    found = linear_accuracy(Features({"token": x}, y), "knn")
    assert found["k"] == 12
    assert knn_purity(x["train"], y["train"], k=20) == knn_purity(x["train"], y["train"], k=11)


def test_a_fit_that_did_not_converge_is_said_in_the_result_and_nowhere_else(monkeypatch, capfd):
    x, y = blobs(spread=1.0)
    filters = list(warnings.filters)
    whole = accuracy(x, y, "lbfgs")
    assert whole["converged"] and whole["iterations"] > 2
    monkeypatch.setattr(probes_module, "LBFGS_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = accuracy(x, y, "lbfgs")
    assert not short["converged"] and short["iterations"] == 2
    assert capfd.readouterr().err == ""
    assert warnings.filters == filters


def test_any_function_of_images_is_an_encoder(run_and_data):
    """Its features may have any names and widths; the order is the one of the splits."""
    data = run_and_data[1]

    def encoder(images):
        return {"pixels": images.flatten(1), "mean": images.float().mean((1, 2, 3))[:, None]}

    found = encode(encoder, data, batch_size=7)
    held = validation_mask(data.train.labels)
    assert torch.equal(found.x["pixels"]["train"], data.train.images[~held].flatten(1).float())
    assert torch.equal(found.x["pixels"]["validation"], data.train.images[held].flatten(1).float())
    assert found.x["mean"]["test"].shape == (len(data.test), 1)
    assert torch.equal(found.y["test"], data.test.labels)
    assert linear_accuracy(found, "lbfgs", "pixels")["test"] > 50
    with pytest.raises(InputError, match="feature must be one of pixels, mean, got 'token'"):
        linear_accuracy(found, "lbfgs")
    with pytest.raises(InputError, match="protocol must be one of sgd, mae, lbfgs, knn"):
        linear_accuracy(found, "online", "mean")


def test_files_of_earlier_commits_are_left_alone(run_and_data):
    run, data = run_and_data
    old = run.folder / "probes" / "0123456789abcdef.json"
    old.parent.mkdir()
    text = json.dumps({"protocol": "'sgd'", "pool": "token", "epoch": None, "test": 99.0})
    old.write_text(text)
    (run.folder / "finetune").mkdir()
    (run.folder / "finetune" / "fedcba.json").write_text(json.dumps({"fraction": 1, "seed": 0}))
    assert table1.linear(run, "sgd", "token") is None
    assert table1.finetuned(run) is None
    found = evaluate(run, "sgd", data=data)
    assert table1.linear(run, "sgd", "token") == found["test"] != 99
    assert table1.linear(run, "sgd", "avg") is None
    tuned = finetune(run.config, recipe_for("digits-vit-nano", epochs=1), data=data)
    assert table1.finetuned(run) == tuned["best"]
    assert old.read_text() == text


def test_purity_and_silhouette_of_two_orthogonal_classes():
    x = torch.eye(2).repeat_interleave(10, 0)
    labels = torch.arange(2).repeat_interleave(10)
    assert knn_purity(x, labels, k=5) == 1
    assert silhouette_score(x.numpy(), labels.numpy(), metric="cosine") == pytest.approx(1)
    # with all 19 others as neighbours, 9 are of the class
    assert knn_purity(x, labels, k=19) == pytest.approx(9 / 19)
    assert silhouette_score(x.numpy(), np.arange(20) % 2, metric="cosine") < 0


def test_purity_against_loops_and_without_the_image_itself():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(40, 5, generator=generator), torch.arange(40) % 4
    cosines = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    shares = []
    for i in range(40):
        nearest = sorted((j for j in range(40) if j != i), key=lambda j: -cosines[i, j])[:7]
        shares.append(sum(labels[j] == labels[i] for j in nearest).item() / 7)
    assert knn_purity(x, labels, k=7) == pytest.approx(sum(shares) / 40)


def test_a_warm_up_may_fill_all_epochs():
    probe = Probe(epochs=2, lr=0.1, warmup_epochs=2)
    rates = [probes_module.schedule(probe, step, 5) for step in range(10)]
    assert rates == pytest.approx([0.1 * (step + 1) for step in range(10)])
