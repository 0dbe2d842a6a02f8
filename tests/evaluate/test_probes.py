"""Frozen features, the linear protocols, what is kept on disk, and the words for many numbers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import silhouette_score
from support import few, small

from lib.data import validation_mask
from lib.errors import InputError
from lib.evaluate import PROTOCOLS, Probe, evaluate, features
from lib.evaluate import probes as ev
from lib.evaluate.probes import linear_probe, prepared
from lib.evaluate.representation import knn_purity
from lib.notebook.statistics import interval, judge, summary, verdict
from lib.train import train


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


def test_features_are_timms_of_whole_images_in_order(run_and_data):
    run, data = run_and_data
    f = features(run, data)
    held = validation_mask(data.train.labels)
    with torch.no_grad():
        tokens = run.load_model().encoder.forward_features(data.normalize(data.train.images))
    for pool, expected in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1))):
        torch.testing.assert_close(f.x[pool]["train"], expected[~held], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f.x[pool]["validation"], expected[held], rtol=1e-4, atol=1e-5)
    assert torch.equal(f.y["train"], data.train.labels[~held])
    assert torch.equal(f.y["test"], data.test.labels)


def test_features_and_accuracies_are_computed_once(run_and_data, monkeypatch):
    run, data = run_and_data
    first = evaluate(run, "sgd", data=data)
    kept = features(run, data)
    monkeypatch.setattr(ev, "encode", None)
    monkeypatch.setattr(ev, "linear_probe", None)
    monkeypatch.setattr(ev, "load", None)
    assert evaluate(run, "sgd") == first
    assert torch.equal(features(run).x["avg"]["test"], kept.x["avg"]["test"])
    with pytest.raises(TypeError):
        evaluate(run, "sgd", seed=1)  # another probe is not the kept one


def test_every_protocol_gives_percentages_and_differs_by_pool(run_and_data):
    run, data = run_and_data
    for protocol in PROTOCOLS:
        for pool in ("token", "avg"):
            found = evaluate(run, protocol, pool, data=data)
            assert set(found) == {"validation", "test"}
            assert all(0 <= v <= 100 for v in found.values())


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


@pytest.mark.parametrize("fields", [{"epochs": 0, "lr": 0.1}, {"epochs": 1, "lr": 0.0}])
def test_a_probe_without_a_budget_is_refused(fields):
    with pytest.raises(InputError, match="epochs >= 1 and lr > 0"):
        Probe(**fields)


def test_preparation_uses_the_training_part_only():
    x, _ = blobs(spread=1.0)
    standard, white = prepared(x, "standardised")["train"], prepared(x, "whitened")["train"]
    torch.testing.assert_close(standard.std(0), torch.ones(6))
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), rtol=0, atol=1e-4)
    moved = {**x, "test": x["test"] + 100}
    for how in ("standardised", "whitened"):
        assert torch.equal(prepared(moved, how)["train"], prepared(x, how)["train"])
    assert prepared(x, "raw") is x


def test_whitening_drops_directions_that_are_not_used():
    x, _ = blobs(spread=1.0)
    x = {s: torch.cat([v, v[:, :2].sum(1, keepdim=True)], 1) for s, v in x.items()}
    assert prepared(x, "whitened")["train"].shape[1] == 6


@pytest.mark.parametrize("prepare", ["raw", "standardised", "whitened"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_probe_separates_what_is_separable_and_not_noise(prepare, optimizer):
    x, y = blobs()
    probe = Probe(epochs=30, lr=10.0, batch_size=32, optimizer=optimizer, prepare=prepare)
    assert linear_probe(x, y, probe) == {"train": 100.0, "validation": 100.0, "test": 100.0}
    noise = {
        s: torch.randn(v.shape, generator=torch.Generator().manual_seed(len(v)))
        for s, v in x.items()
    }
    assert linear_probe(noise, y, probe)["test"] < 60  # chance is 33


def test_a_short_plain_probe_is_blind_where_a_standardised_one_sees():
    """The effect that 03_linear_probe is about: a class direction a thousand times smaller than the others."""
    x, y = blobs(classes=2, spread=0.05)
    scale = torch.tensor([1e-3, 1e-3, 1, 1, 1, 1])
    x = {s: v * scale for s, v in x.items()}
    plain, standard = (
        linear_probe(x, y, Probe(10, 0.1, 32, prepare=how))["test"]
        for how in ("raw", "standardised")
    )
    assert standard == 100
    assert plain < 80


def test_a_probe_is_a_function_of_its_seed():
    x, y = blobs(spread=0.7)
    probe = Probe(epochs=2, lr=0.1, batch_size=16)
    assert linear_probe(x, y, probe, seed=1) == linear_probe(x, y, probe, seed=1)
    state = torch.random.get_rng_state()
    linear_probe(x, y, probe)
    assert torch.equal(state, torch.random.get_rng_state())


def test_knn_protocol_is_a_vote_of_twenty_by_cosine():
    x, y = blobs(spread=0.6)
    found = ev._sklearn(x, y, "knn")
    train, test = (F.normalize(x[s], dim=1) for s in ("train", "test"))
    votes = F.one_hot(y["train"])[(test @ train.T).topk(20).indices].sum(1)
    clear = votes.topk(2, dim=1).values.diff(dim=1)[:, 0] != 0  # ties may be cut either way
    slow = (votes.argmax(1) == y["test"])[clear].double().mean().item()
    assert found["test"] == pytest.approx(
        100 * slow, abs=100 * (~clear).double().mean().item() + 1e-9
    )


def test_purity_and_silhouette_of_two_orthogonal_classes():
    x = torch.eye(2).repeat_interleave(10, 0)
    labels = torch.arange(2).repeat_interleave(10)
    assert knn_purity(x, labels, k=5) == 1
    assert silhouette_score(x.numpy(), labels.numpy(), metric="cosine") == pytest.approx(1)
    # with all 19 others as neighbours, 9 are of the class; with labels that alternate, nearest ones are mixed alike
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


def test_summary():
    assert summary([50.0]) == "50.0 (n=1)"
    assert summary([49.0, 51.0]) == "50.0 ± 1.4 (n=2)"


def test_interval_is_students():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3)),
        pytest.approx(2 + 4.302653 / math.sqrt(3)),
    )
    assert interval([5.0]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "differences, above, says",
    [
        ([5.0], 0, "cannot tell"),
        ([4.9, 5.0, 5.1], 0, "agrees"),
        ([-5.1, -5.0, -4.9], 0, "does not agree"),
        ([-1.0, 5.0, 6.0], 0, "cannot tell"),
        ([-0.2, -0.25, -0.3], -0.5, "agrees"),
        ([-0.2, -0.25, -0.3], 0, "does not agree"),
        ([0.0, 0.0], 0, "cannot tell"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(differences, above, says, capsys):
    assert verdict(differences, above) == says
    assert judge("it helps", differences, above)["verdict"] == says
    assert says in capsys.readouterr().out
