"""Raw pixels and an untrained encoder, measured like a run."""

import sys

import pytest
import torch
from support import few, same_tensors, small

from lib.errors import InputError
from lib.evaluate import encode, evaluate, features, linear_accuracy
from lib.evaluate.baselines import (
    BASELINES,
    _encoder,
    baseline_features,
    evaluate_baseline,
    untrained,
)
from lib.train import train


def test_untrained_is_the_run_before_its_first_step():
    config = small(epochs=1, seed=3)
    data = few(config)
    run = train(config, data)
    assert same_tensors(untrained(config).state_dict(), run.load_model(0).state_dict())
    start, found = features(run, data, 0), baseline_features("untrained", config, data)
    for pool in BASELINES["untrained"]:
        assert torch.equal(found.x[pool]["test"], start.x[pool]["test"])
    for protocol in ("sgd", "lbfgs"):
        assert evaluate_baseline("untrained", config, protocol, data=data) == evaluate(
            run, protocol, epoch=0, data=data
        )


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_features_of_a_baseline_belong_to_the_shape_that_decides_them(baseline):
    """The decoder is drawn before the encoder is initialised, by the same generator."""
    config = small()
    baseline_features(baseline, config, few(config))
    for fields in ({"image_size": 16}, {"decoder_dim": 32}, {"decoder_depth": 2}):
        other = small(**fields)
        found = baseline_features(baseline, other, few(other))
        fresh = encode(_encoder(baseline, other, few(other)), few(other))
        for name, x in fresh.x.items():
            assert torch.equal(found.x[name]["test"], x["test"])


def test_pixels_are_the_normalised_images():
    config = small()
    data = few(config)
    x = baseline_features("pixels", config, data).x["pixels"]["test"]
    expected = data.normalization(config.normalize)(data.test.images).flatten(1)
    assert torch.equal(x, expected)


def test_a_baseline_is_measured_once_and_anew_on_other_images(monkeypatch, capsys):
    config = small()
    data = few(config)
    first = evaluate_baseline("pixels", config, "lbfgs", data=data)
    assert first["test"] > 60  # digits' pixels are nearly separable, chance is 10
    fresh = linear_accuracy(baseline_features("pixels", config, data), "lbfgs", "pixels")
    assert first == fresh
    other = few(config, 100)
    other.fingerprint = "0" * 16
    assert evaluate_baseline("pixels", config, "lbfgs", data=other) != first
    assert "lbfgs of pixels: measured anew" in capsys.readouterr().out
    monkeypatch.setattr(sys.modules["lib.evaluate.baselines"], "linear_accuracy", None)
    assert evaluate_baseline("pixels", config, "lbfgs", data=data) == first


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("noise", "sgd"), "baseline must be one of pixels, untrained, got 'noise'"),
        (("pixels", "sgd", "token"), "feature must be one of pixels, got 'token'"),
        (("untrained", "online"), "protocol must be one of sgd, mae, lbfgs, knn, got 'online'"),
    ],
)
def test_what_does_not_exist_is_one_line(arguments, message):
    name, *rest = arguments
    with pytest.raises(InputError, match=message):
        evaluate_baseline(name, small(), *rest)
