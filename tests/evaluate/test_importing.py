"""A full checkpoint as a run: found by notebooks, marked as imported, refused where it differs."""

import shlex
import sys

import pytest
import torch
import torch.nn.functional as F
import yaml
from support import image_folder
from support.checkpoints import config_of, mae_names, their_forward, written
from support.models import seeded
from support.notebooks import run_here

from lib.data import load
from lib.errors import InputError
from lib.evaluate import evaluate, features
from lib.evaluate.encoders import frozen_encoder
from lib.evaluate.importing import _parameters, import_run, main, run
from lib.losses import reconstruction_loss, uniformity_loss
from lib.masking import random_masks
from lib.notebook.inventory import runs_found
from lib.presets import PRESETS, resolve
from lib.train import train, train_all

SHOWN = dict(uniformity="released", protocols=["sgd"])
THEIRS = dict(mask_ratio=0.6, norm_pix_loss=True, imported="theirs", uniformity="released")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("pictures"), per_class=20)


@pytest.fixture
def config(root):
    """What a notebook is given for the files that `written` makes."""
    return config_of(data=f"folder:{root}", epochs=200, lam=0.01, device="cpu", **THEIRS)


@pytest.fixture
def model(config):
    return seeded(config)


@pytest.mark.parametrize("release", [True, False])
def test_the_imported_run_has_the_latent_prediction_and_loss_of_the_file(
    config, model, tmp_path, release
):
    path = written(tmp_path / "checkpoint-199.pth", model, release=release)
    found = import_run([path], config).load_model()
    tensors, masks = mae_names(model), random_masks(8, 16, 0.6)
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        latent, pred = found(images, masks)
        loss = reconstruction_loss(pred, found.targets(images, masks), True)
        seen = found.uniformity_features(latent, "token", "released")
        uniformity = uniformity_loss(seen, "released")
        slow, everything = their_forward(tensors, images, masks, 2, 4, 4)
    torch.testing.assert_close(latent, slow, rtol=1e-4, atol=1e-5)
    removed = torch.stack([t[i] for t, i in zip(everything, masks.ids_remove, strict=True)])
    torch.testing.assert_close(pred, removed, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(their_loss(everything, images, masks), rel=1e-4)
    again = F.layer_norm(slow[:, 0], (16,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)
    unit = F.normalize(again, dim=-1)
    assert uniformity.item() == pytest.approx((unit @ unit.T).square().mean().item(), rel=1e-4)


def their_loss(pred, images, masks):
    """Over all patches in the order of the image, averaged by the mask, on normalised targets."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # (N, C, rows, columns, 4, 4)
    target = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = (pred - (target - mean) / (var + 1e-6).sqrt()).square().mean(-1)
    return ((error * masks.mask).sum() / masks.mask.sum()).item()


def test_it_is_found_and_says_that_it_was_imported(config, model, tmp_path, capsys):
    path = written(tmp_path / "checkpoint-199.pth", model)
    imported = import_run([path], config)
    assert (imported.folder / "result.json").is_file() and not list(imported.folder.glob("*.pt"))
    assert imported.record["imported"]["files"][0]["args"]["batch_size"] == 64
    assert imported.result["imported"] == imported.record["imported"]
    assert imported.result["test_rank_token"] >= 1 and imported.result["test_reconstruction"] > 0
    assert not any("online" in name for name in imported.result)
    assert imported.snapshot_epochs() == [200]
    assert imported.folder.name.startswith("cifar10-vit-micro-importedtheirs-")
    capsys.readouterr()
    assert train(config) == imported and train_all([config]) == [imported]
    said = capsys.readouterr().out
    assert said.count("imported from checkpoint-199.pth, sha256 ") == 2
    card = (imported.folder / "encoder" / "README.md").read_text()
    assert "Not trained by this code: imported from checkpoint-199.pth" in card
    assert "MIT" not in card and "batches" not in card
    (row,) = runs_found()
    assert row["origin"].startswith("imported from checkpoint-199.pth")
    assert frozen_encoder(f"run:{imported.folder.name}", "cpu").notes == (imported.imported_from,)
    with pytest.raises(InputError, match="no layer was trained along with it"):
        evaluate(imported, "online")


@pytest.mark.parametrize("moments, mean", [("imagenet", 0.485), ("dataset", None)])
def test_its_pictures_are_normalised_as_they_were_in_its_training(
    config, model, tmp_path, moments, mean
):
    path = written(tmp_path / "c.pth", model)
    imported = import_run([path], config, moments)
    data = load(**config.data_fields)
    expected = data.mean[0].item() if mean is None else mean
    assert imported.as_trained(data).mean[0].item() == pytest.approx(expected)
    encoder = frozen_encoder(f"run:{imported.folder.name}", "cpu")
    assert encoder.normalization.mean[0].item() == pytest.approx(expected)
    found = features(imported, data).x["token"]["test"]
    with torch.no_grad():
        pixels = imported.as_trained(data).normalization("dataset")(data.test.images)
        tokens = model.encoder.forward_features(pixels)
    torch.testing.assert_close(found, tokens[:, 0], rtol=1e-4, atol=1e-5)


def test_files_of_one_training_are_its_snapshots(config, tmp_path):
    paths = [written(tmp_path / f"{e}.pth", seeded(config, e), epoch=e) for e in (99, 199)]
    imported = import_run(paths, config)
    assert imported.snapshot_epochs() == [100, 200]
    first, last = (seeded(config, e).state_dict() for e in (99, 199))
    assert torch.equal(imported.load_model(100).mask_token, first["mask_token"])
    assert torch.equal(imported.load_model().mask_token, last["mask_token"])


def test_the_name_of_a_training_stands_for_how_it_was_trained(config):
    other = config_of(**{**THEIRS, "data": config.data, "epochs": 200, "lam": 0.01},
                      base_lr=1.0, batch_size=32, augment="flip")  # fmt: skip
    assert other.hash8("images") == config.hash8("images")
    names = config_of(imported="a"), config_of(imported="b"), config_of()
    assert len({c.hash8("images") for c in names}) == 3
    assert "imported" not in config_of().identity()
    # as before there was such a field
    assert PRESETS["digits-vit-nano"].hash8("f") == "eee88990"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask_ratio": 0.75}, "has mask_ratio 0.6, the settings have 0.75; give --mask-ratio 0.6"),
        ({"norm_pix_loss": False}, "has norm_pix_loss True, the settings have False"),
        ({"epochs": 100}, "has epochs 200, the settings have 100; give --epochs 200"),
        ({"depth": 3}, "has depth 2, the settings have 3"),
        ({"imported": ""}, "importing needs files, and a name"),
    ],
)
def test_a_file_that_contradicts_the_settings_is_refused(
    root, model, tmp_path, changes, message, outputs
):
    path = written(tmp_path / "c.pth", model)
    fields = {"data": f"folder:{root}", "epochs": 200, **THEIRS, **changes}
    refused(message, [path], config_of(**fields))
    assert not (outputs / "runs").exists()


def refused(message, files, config):
    with pytest.raises(InputError, match=message) as raised:
        import_run(files, config)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_imported_is_one_line(config, model, tmp_path):
    names = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")
    own = {k: v for k, v in mae_names(model).items() if k.split(".")[0] in names}
    torch.save({"model": own}, tmp_path / "encoder.pth")
    refused("decoder_heads was given, but .* has no decoder", [tmp_path / "encoder.pth"], config)
    paths = [written(tmp_path / f"{e}.pth", model, epoch=e) for e in (199, 99)]
    refused("has epochs 100, the settings have 200", paths, config)
    refused(r"of growing epochs of one training, got \[200, 200\]", [paths[0]] * 2, config)
    written(tmp_path / "odd.pth", model, epoch="last")
    refused("its epoch is 'last'", [tmp_path / "odd.pth"], config)
    import_run(paths[:1], config)
    refused("exists, imported from 199.pth, sha256 .*; delete its folder", paths[:1], config)


def test_what_was_not_imported_is_not_trained(config):
    with pytest.raises(InputError, match=r"nothing was imported as 'theirs' .* with lam 0.01,"):
        train(config)


def named_by(printed):
    """The Config of a notebook that is given the line which the command prints."""
    (line,) = (line for line in printed.splitlines() if line.startswith("for a notebook: "))
    words = shlex.split(line.removeprefix("for a notebook: "))
    given = {}
    while words:
        option, first, *words = words
        if option == "-p":
            value, *words = words
            given[first] = yaml.safe_load(value)
        else:
            given |= yaml.safe_load(first)
    (seed,) = given.pop("seeds")
    return resolve(given.pop("preset"), seed=seed, **given.pop("overrides"), **given)


def test_the_line_for_a_notebook_names_all_that_names_the_run():
    """Seed, form and place of the term, classes, and a path with a space."""
    fields = {"data": "folder:/a b", "classes": ("x", "y"), "seed": 3, "pool": "avg", "lam": 0.25}
    config = config_of(**{**THEIRS, **fields})
    assert named_by(f"for a notebook: {_parameters(config)}") == config


def test_the_command_imports_and_says_what_a_notebook_is_given(config, model, tmp_path, capsys):
    path = written(tmp_path / "checkpoint-199.pth", model)
    command = ["--files", str(path), "--preset", "cifar10-vit-micro", "--data", config.data,
               "--image-size", "16", "--embed-dim", "16", "--depth", "2", "--num-heads", "2",
               "--decoder-dim", "24", "--decoder-depth", "1", "--decoder-heads", "4",
               "--epochs", "200", "--lam", "0.01", "--uniformity", "released",
               "--mask-ratio", "0.6", "--norm-pix-loss", "true", "--device", "cpu"]  # fmt: skip
    imported = run([*command, "--imported", "theirs"])
    assert imported.folder == import_folder(config)
    printed = capsys.readouterr().out
    assert "-p preset cifar10-vit-micro -p data folder:" in printed and "-p epochs 200" in printed
    assert "-p epochs 200" in printed
    assert named_by(printed).hash8("images") == config.hash8("images")
    with pytest.raises(InputError, match="required: --imported"):
        run(command)


def import_folder(config):
    return train(config).folder


def test_the_command_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--files", "none.pth", "--lam", "0", "--imported", "a",
                                      "--preset", "digits-vit-nano"])  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said == "error: no checkpoint at none.pth; give the path of a .pth file\n"


def test_notebooks_use_a_pair_of_imported_runs(config, root, tmp_path, outputs, capsys):
    for lam in (0.0, 0.01):
        model = seeded(config, seed=int(lam > 0))
        path = written(tmp_path / f"{lam}.pth", model)
        import_run([path], config_of(**{**vars_of(config), "lam": lam}))
    overrides = {k: v for k, v in vars_of(config).items() if k not in ("data", "lam", "epochs")}
    given = dict(preset="cifar10-vit-micro", data=config.data, epochs=200, lam=0.01,
                 overrides=overrides)  # fmt: skip
    space = run_here("03_linear_probe", **given, jobs=1, probe_epochs=[1], probe_lrs=[0.1])
    assert {run.imported_from.split(",")[0] for run in space["runs"].values()} == {
        "imported from 0.0.pth", "imported from 0.01.pth"
    }  # fmt: skip
    assert "online" not in {protocol for protocol, _ in space["table"]}
    plain = evaluate(space["runs"]["U-MAE", 0], "sgd")["test"]
    assert space["table"]["sgd", "token"]["U-MAE"] == [plain]
    space = run_here("05_tsne", **given, jobs=1, images=20, tsne_seeds=[0], neighbours=3)
    assert space["table"].shape[1] == 4
    space = run_here("07_training_curve", **given, jobs=1, protocols=["knn"])
    assert space["chosen"] == [200]
    space = run_here("10_table1", **{**given, "overrides": {"mask_ratio": 0.6}}, **SHOWN)
    assert "cifar10-vit-micro, imported (200 epochs)" in space["table"].columns
    assert "epoch 1/" not in capsys.readouterr().out  # nothing was trained
    assert len(list((outputs / "runs").iterdir())) == 2


def vars_of(config):
    """The fields in which the config of these tests differs from its preset."""
    base = vars(PRESETS[config.preset])
    return {k: v for k, v in vars(config).items() if v != base[k] and k != "warmup_epochs"}
