"""The exported encoder: its input through timm is ours, and its card says what it is."""

import pytest
import timm
import torch
from PIL import Image
from support import few, folder_config, image_folder, small
from timm.data import create_transform, resolve_model_data_config

from lib.data import load
from lib.evaluate import evaluate
from lib.evaluate.features import encode
from lib.evaluate.probes import linear_accuracy
from lib.masking import random_masks
from lib.runs.export import coefficient
from lib.train import train


def exported(run):
    return timm.create_model(f"local-dir:{run.folder / 'encoder'}", pretrained=True).eval()


@pytest.mark.parametrize("normalize", ["dataset", "unit"])
def test_timms_own_transform_gives_our_input_of_grey_images(normalize):
    config = small(epochs=1, normalize=normalize)
    data = few(config)
    run = train(config, data)
    model = exported(run)
    transform = create_transform(**resolve_model_data_config(model))
    pixels = data.test.images[:8]
    theirs = torch.stack([transform(Image.fromarray(x[0].numpy())) for x in pixels])
    ours = data.normalization(normalize)(pixels)
    assert torch.equal(theirs, ours)
    with torch.no_grad():
        latent = run.load_model().encode(ours, random_masks(8, config.num_patches, 0.0))
        tokens = model.forward_features(theirs)
    torch.testing.assert_close(tokens[:, 0], latent[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 1:].mean(1), latent[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_a_probe_reads_the_same_accuracy_through_timm():
    """With ImageNet's mean and std, which timm fills in where none are given, it falls by half."""
    config = small(epochs=1)
    data = few(config, 400)
    run = train(config, data)
    model = exported(run)
    given = resolve_model_data_config(model)

    def accuracy(**other):
        transform = create_transform(**{**given, **other})

        def encoder(images):
            pictures = [transform(Image.fromarray(x[0].numpy())) for x in images]
            with torch.no_grad():
                return {"token": model.forward_features(torch.stack(pictures))[:, 0]}

        return linear_accuracy(encode(encoder, data), "knn")["test"]

    own = evaluate(run, "knn", data=data)["test"]
    assert own > 30 and accuracy() == pytest.approx(own, abs=1)


@pytest.mark.parametrize("normalize", ["dataset", "unit"])
@pytest.mark.parametrize("size", [(20, 16), (8, 8)])
def test_timms_own_transform_gives_our_input_of_rgb_files(tmp_path, normalize, size):
    root = image_folder(tmp_path / "images", size=size)
    for stream in ("never", "always"):
        config = folder_config(root, epochs=1, normalize=normalize, stream=stream)
        data = load(**config.data_fields)
        run = train(config, data)
        transform = create_transform(**resolve_model_data_config(exported(run)))
        theirs = [transform(Image.open(path).convert("RGB")) for path in data.test.paths]
        own = run.as_trained(data)
        ours = own.normalization(normalize)(own.images(own.test, range(len(own.test))))
        assert torch.equal(torch.stack(theirs), ours)


def test_the_card_says_what_the_encoder_is():
    config = small(epochs=1, lam=0.01)
    run = train(config, few(config))
    card = (run.folder / "encoder" / "README.md").read_text()
    assert card.startswith("# U-MAE encoder, digits-vit-nano\n")
    assert f"| {run.result['test_online_token_full']:.2f} |" in card
    assert run.fingerprint in card and "Epochs: 1 of batches of 64, seed 0" in card
    assert "0.16 on the mean squared cosine" in card and "0.01 of the spectral form" in card


def test_the_coefficient_is_converted_by_the_width():
    ours, theirs = small(lam=0.01), small(lam=0.16, uniformity="released")
    assert coefficient(ours) == coefficient(theirs)
    assert coefficient(small(lam=0)) == "0: MAE, without a uniformity term"
    assert coefficient(small(uniformity="euclidean", lam=0.5)) == "0.5, on the euclidean form"
