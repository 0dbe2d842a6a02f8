"""Every notebook on other images than digits: streamed, few, of few classes or many."""

import pytest
from support import image_folder
from support.notebooks import PATHS, code_of, run_here

from lib.errors import InputError

# 00_start and 09_theory train nothing, 09a_graph is about digits whatever the preset, and
# 11_audit takes encoders instead of a preset: they have tests of their own.
FIXED = ("00_start", "09_theory", "09a_graph", "11_audit")
NAMES = [name for name in PATHS if name not in FIXED]
pytestmark = pytest.mark.usefixtures("shared_outputs")
THIN = {
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "stream": "always",
    "warmup_epochs": 0.0,
}
# Parameters of a notebook's own that THIN may not set as well, and what makes it short.
SHORT = {
    "01_masking": {},
    "02_pretrain": {"epochs": 1},
    "03_linear_probe": {"epochs": 1, "probe_epochs": [1], "probe_lrs": ["1e-2"]},
    "04_finetune": {"epochs": 1, "finetune_epochs": 1, "fractions": [1.0]},
    "05_tsne": {"epochs": 1, "tsne_seeds": [0, 1], "images": 40},
    "06_lambda_ablation": {"epochs": 1, "lams": ["1e-2"], "seeds": [0]},
    "07_training_curve": {"epochs": 1},
    "08_mask_ratio": {
        "epochs": 1, "model_ratios": [0.75], "references": 4, "queries": 8, "draws": 20,
    },
    "09b_trained_model": {"epochs": 1, "inverse_steps": 3},
    "09c_uniformity": {"epochs": 1},
    "10_table1": {"epochs": 1},
}  # fmt: skip


def thin(name: str, preset: str, data: str, **more) -> dict:
    """The parameters that make a preset small, in the one place where the notebook takes each."""
    own = {**SHORT[name], "preset": preset, "data": data, "overrides": {**THIN, **more}}
    declared = code_of(name)[0]
    for key in ("batch_size", "device"):
        if f"\n{key} " in declared:
            own[key] = own["overrides"].pop(key)
    if "\njobs:" in declared:
        own["jobs"] = 1
    return own


@pytest.fixture(scope="module")
def large_images(shared):
    """24 images of 2 classes, larger than 224 pixels."""
    return f"folder:{image_folder(shared / 'large', per_class=6, size=(256, 240))}"


@pytest.fixture(scope="module")
def small_images(shared):
    """24 images of 2 classes, smaller than 32 pixels."""
    return f"folder:{image_folder(shared / 'small', per_class=6)}"


@pytest.fixture(scope="module")
def many_classes(shared):
    """200 classes with 3 images for training and 3 for testing each."""
    names = [f"class{k:03d}" for k in range(200)]
    root = image_folder(shared / "many", classes=names, per_class=3, size=(8, 8))
    return f"folder:{root}"


SLOW = {"09b_trained_model": pytest.mark.slow}  # trains an encoder of its own at every epoch


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in NAMES])
def test_the_papers_imagenet_preset(name, large_images, shared_outputs):
    space = run_here(name, **thin(name, "imagenet100-vit-base", large_images))
    for suffix in ("png", "json"):
        assert list((shared_outputs / name).glob(f"*/*.{suffix}"))
    if "dataset" in space and not name.startswith("09"):
        assert space["dataset"].train.images is None and space["cfg"].image_size == 224
        assert space["cfg"].embed_dim == 32 or name == "01_masking"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_papers_cifar_preset(name, small_images):
    run_here(name, **thin(name, "cifar10-vit-tiny", small_images))


@pytest.mark.parametrize("name", ["01_masking", "04_finetune", "05_tsne", "08_mask_ratio"])
def test_two_hundred_classes(name, many_classes):
    small = {"image_size": 8, "patch_size": 2, "stream": "never", "batch_size": 64}
    space = run_here(name, **thin(name, "digits-vit-nano", many_classes, **small))
    assert len(space["dataset"].class_names) == 200
    if name in ("01_masking", "05_tsne"):
        assert len(space["classes"]) == 10


def test_the_audit_reads_the_pictures_of_its_own_runs(tmp_path):
    root = image_folder(tmp_path / "three", ("cat", "cow", "dog"), per_class=4)
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    chosen = {"classes_file": str(tmp_path / "two.txt")}
    given = thin("10_table1", "digits-vit-nano", f"folder:{root}", **chosen)
    given["overrides"].pop("device")
    short = {"probe_seeds": [0], "budgets": [1]}
    del given["epochs"]
    space = run_here("11_audit", **given, **short, epochs=1)
    assert space["pictures"].class_names == ["cat", "dog"]


def test_the_ablation_chooses_its_top_on_the_validation_part():
    given = thin("06_lambda_ablation", "digits-vit-nano", "digits", stream="auto", batch_size=256)
    short = {"lams": [1e-3, 1e-2, 1e-1], "forms": ["spectral"], "protocols": ["sgd"]}
    space = run_here("06_lambda_ablation", **given | short)
    accuracy, inner = space["accuracy"], (1e-3, 1e-2)
    for protocol, top in space["middle"].items():
        values = {v: accuracy[protocol, "spectral", v, 0]["validation"] for v in inner}
        assert values[top] == max(values.values())


def test_a_label_that_is_no_class_is_one_line():
    with pytest.raises(InputError) as caught:
        run_here("01_masking", label=12)
    assert str(caught.value) == "label 12 is not a class of these images; choose 0 to 9"


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("03_linear_probe", {"overrides": {"dept": 2}}, "unknown parameter 'dept': did you mean"),
        ("03_linear_probe", {"probe_epochs": [3, 0]}, "epochs must be"),
        ("04_finetune", {"fractions": [2.0]}, "fractions must be shares"),
        ("04_finetune", {"fractions": ["a"]}, r"fractions\[0\] must be float"),
        ("05_tsne", {"overrides": {"seed": 2}}, "use this notebook's own"),
        ("06_lambda_ablation", {"protocols": ["sdg"]}, "unknown 'sdg', did you mean 'sgd'"),
        ("06_lambda_ablation", {"overrides": {"epochs": 2}}, "overrides sets 'epochs'"),
        ("07_training_curve", {"feature": "tokn"}, "feature must be one of token, avg"),
        ("08_mask_ratio", {"overrides": {"mask_ratio": 0.5}}, "overrides sets 'mask_ratio'"),
        ("09b_trained_model", {"lam": 0.0}, "lam must be above 0"),
        ("09c_uniformity", {"overrides": {"seed": 1}}, "use this notebook's own"),
        ("10_table1", {"seeds": ["x"]}, "seeds"),
        ("10_table1", {"overrides": {"data": "digits"}}, "use this notebook's own"),
        ("10_table1", {"overrides": {"lam": 0.01}, "lam": 0.01}, "overrides sets 'lam'"),
        ("11_audit", {"encoder": "run:a", "lam": 0.0}, "lam: of the preset's runs"),
        ("11_audit", {"encoder": "run:a", "epochs": 0}, "epochs: of the preset's runs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(name, given, message, shared_outputs):
    before = set(shared_outputs.glob("runs/*"))
    with pytest.raises(InputError, match=message):
        run_here(name, **given)
    assert set(shared_outputs.glob("runs/*")) == before
