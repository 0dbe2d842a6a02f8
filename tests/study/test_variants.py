"""The other uniformity terms of the study: their closed forms, and that they train and resume."""

import pytest
import torch
import torch.nn.functional as F
from support import few, same_tensors, small, weights

from lib.errors import Interrupted
from lib.runs.files import read_json
from lib.train import train
from study import __main__ as study
from study.plan import UMAE_MEAN, VARIANTS, Planned
from study.tables import PROTOCOLS
from study.variant_gains import variant_claims, variants_block
from study.variants import VariantTrainer, open_variant, train_variant

TERM = {**UMAE_MEAN, "epochs": 2}


def trainer(name: str, **fields) -> VariantTrainer:
    config = small(**{**TERM, **fields})
    return VariantTrainer(name, config, few(config))


def pairs_of(features: torch.Tensor) -> float:
    """D * mean cos^2 over pairs of different rows, one pair at a time."""
    f = F.layer_norm(features.double(), features.shape[-1:])
    n, dim = f.shape
    cosines = [(f[i] @ f[j]).item() / dim for i in range(n) for j in range(n) if i != j]
    return dim * sum(c * c for c in cosines) / len(cosines)


@pytest.fixture
def latent():
    return torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))


def test_all_tokens_takes_each_visible_token_as_a_view(latent):
    found = trainer("all tokens").objective.uniformity(latent)
    assert found.item() == pytest.approx(pairs_of(latent.reshape(30, 16)), rel=1e-5)


def test_the_falling_term_goes_from_twice_its_value_to_nothing(latent):
    own = trainer("falling")
    whole = pairs_of(latent[:, 1:].mean(1))
    last = own.config.epochs * own.steps_per_epoch
    for step, factor in ((0, 2.0), (last // 2, 1.0), (last, 0.0)):
        own.step = step
        assert own.objective.uniformity(latent).item() == pytest.approx(factor * whole, rel=1e-5)


def test_the_dropped_head_stands_between_feature_and_term(latent):
    objective = trainer("dropped head").objective
    expected = pairs_of(objective.head(latent[:, 1:].mean(1)).detach())
    assert objective.uniformity(latent).item() == pytest.approx(expected, rel=1e-5)


def test_the_variance_term_is_a_hinge_on_each_coordinate(latent):
    objective = trainer("variance only").objective
    f = F.layer_norm(latent[:, 1:].mean(1), (16,))
    expected = sum(max(0.0, 1 - (x.var() + 1e-4).sqrt().item()) for x in f.T) / 16
    assert objective.uniformity(latent).item() == pytest.approx(expected, rel=1e-5)
    line = torch.ones(6, 5, 1) * torch.randn(16)
    assert objective.uniformity(line).item() == pytest.approx(0.99)  # nothing varies
    spread = torch.cat([torch.eye(16), -torch.eye(16)])[:, None].expand(-1, 5, -1)
    assert 0 <= objective.uniformity(spread).item() < 0.02


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_adds_its_term_to_the_loss_and_starts_from_the_same_weights(name):
    own, plain = trainer(name), trainer(name, lam=0.0)
    images, masks, labels = next(own.micro_batches(0))
    total, terms = own.objective(images, masks, labels)
    loss, reconstruction, uniformity = terms.tolist()
    assert loss == pytest.approx(reconstruction + own.config.lam * uniformity, rel=1e-6)
    assert same_tensors(own.objective.mae.state_dict(), plain.objective.mae.state_dict())
    plain.objective(images, masks, labels)[0].backward()
    total.backward()
    own_grad, mae_grad = (t.objective.mae.encoder.norm.weight.grad for t in (own, plain))
    assert not torch.allclose(own_grad, mae_grad)


def test_a_variant_is_a_run_of_its_own_and_the_head_is_not_in_it():
    config = small(**TERM)
    data = few(config)
    plain = train(config, data)
    runs = {name: train_variant(name, config, data) for name in VARIANTS}
    assert len({run.folder for run in (plain, *runs.values())}) == 5
    for name, run in runs.items():
        assert run.record["variant"] == name and not same_tensors(weights(run), weights(plain))
        assert weights(run).keys() == weights(plain).keys()
    head = trainer("dropped head").objective.head[0].weight
    before = head.detach().clone()
    own = trainer("dropped head")
    own.train_epoch(0, NoBar(), [])
    assert not torch.equal(before, own.objective.head[0].weight)  # it is trained as well


class NoBar:
    def update(self, n: int) -> None:
        pass


@pytest.mark.parametrize("name", ["dropped head", "falling"])
def test_a_stopped_variant_ends_with_the_same_weights(name, monkeypatch, tmp_path):
    config = small(**TERM)
    data = few(config)
    whole = weights(train_variant(name, config, data))
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path))
    real = VariantTrainer.train_epoch

    def stopped(self, epoch, bar, should_stop):
        real(self, epoch, bar, should_stop)
        if epoch == 0:
            should_stop.append(15)

    monkeypatch.setattr(VariantTrainer, "train_epoch", stopped)
    with pytest.raises(Interrupted):
        train_variant(name, config, data)
    monkeypatch.setattr(VariantTrainer, "train_epoch", real)
    assert same_tensors(whole, weights(train_variant(name, config, data)))


def test_the_study_trains_a_variant_and_tells_the_four_apart(monkeypatch):
    config = small(**TERM, snapshots=0)
    data, name = few(config), open_variant("falling", config, few(config).fingerprint).folder.name
    monkeypatch.setattr(study, "measure", lambda planned, run, _: {"run": str(run.folder)})
    paths = set()
    for variant in VARIANTS:
        planned = Planned("variants", "cifar10", variant, 0, TERM)
        assert study.finish(planned, config, data)
        paths.add(study.record_path(planned, name))
        own = open_variant(variant, config, data.fingerprint).folder
        assert read_json(study.record_path(planned, name)) == {"run": str(own)}
    assert len(paths) == 4


def measured(part: str, objective: str, seed: int, accuracy: float) -> dict:
    own = {"avg": {"test": accuracy}}
    where = {"part": part, "data": "cifar10", "objective": objective, "seed": seed}
    return {**where, "fields": {"lam": 0.0}, "accuracy": {p: own for p in PROTOCOLS}}


def test_the_gain_of_a_variant_is_over_mae_of_the_same_seed():
    base = [measured("coefficients", "MAE", s, 20.0 + s) for s in range(3)]
    own = [measured("variants", "falling", s, 22.0 + 1.1 * s) for s in (0, 1, 2, 7)]
    claims = variant_claims([*base, *own])
    assert {c["variant"] for c in claims} == {"falling"} and len(claims) == 5
    larger = [{**r, "fields": {"lam": 0.01}} for r in own[:1]]
    both = variant_claims([*base, *larger, *own])
    assert [c["lam"] for c in both] == 5 * [0.0] + 5 * [0.01]
    assert claims[0]["differences"] == pytest.approx([2.0, 2.1, 2.2])
    assert "| cifar10 | falling | 0 | `sgd` | +2.1" in variants_block([*base, *own])
    assert "python -m study" in variants_block(base)
