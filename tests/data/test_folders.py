"""Folders as people have them: what is read, what is left out and said, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import folder_config, image_folder
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from lib.data import load
from lib.data.folders import SUFFIXES, find_images
from lib.errors import InputError


def of_folder(root, **fields):
    return load(**folder_config(root, **fields).data_fields)


def refusal(root, **fields) -> str:
    with pytest.raises(InputError) as caught:
        of_folder(root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_out(root, split="train", **fields) -> str:
    """The end of the line that tells what was left out of a split."""
    train, test, _ = find_images(root, **fields)
    line = (train if split == "train" else test).report(split)
    return line.split("left out: ")[1]


# ---- what is read --------------------------------------------------------------------------------


def test_every_image_of_a_folder_arrives_with_its_label(tmp_path):
    root = image_folder(tmp_path, per_class=3, size=(8, 8))
    data = of_folder(root)
    assert data.class_names == ["cat", "dog"] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for image, path in zip(data.train.images, data.train.paths, strict=True):
        assert torch.equal(image, torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
    assert data.train.paths[4].parent.name == "dog"
    assert data.test.paths[0].parent.parent.name == "val"


def test_the_files_are_those_of_torchvisions_imagefolder_in_its_order(tmp_path):
    root = image_folder(tmp_path)
    for name in ("b/deep/1.png", "a/2.PNG", "a.b/3.jpeg", "b/0.png"):
        path = root / "train" / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "train/cat/0.png", path)
    (root / "train/dog/notes.txt").write_text("no image")
    found = find_images(root)[0]
    expected = ImageFolder(str(root / "train")).samples
    assert [(str(p), y) for p, y in zip(found.paths, found.labels, strict=True)] == expected
    assert len(found.paths) == 16


def test_all_suffixes_of_torchvision_and_common_ones_are_read(tmp_path):
    assert set(IMG_EXTENSIONS) <= SUFFIXES
    root = image_folder(tmp_path)
    image = Image.open(root / "train/cat/0.png").copy()
    others = {".pgm": "PPM", ".pbm": "PPM", ".jfif": "JPEG", ".gif": "GIF", ".tif": "TIFF"}
    for suffix, kind in others.items():
        mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
        image.convert(mode).save(root / "train/cat" / f"x{suffix.upper()}", kind)
    assert len(of_folder(root).train) == 12 + len(others)


def test_one_line_a_split_says_what_was_read_and_left_out_and_why(tmp_path, capsys):
    root = image_folder(tmp_path)
    cat = root / "train" / "cat"
    for name in ("._0.png", ".DS_Store", "notes.txt", "more.txt", "x.heic", "README"):
        (cat / name).write_text("no image")
    (cat / "__MACOSX").mkdir()
    (root / "train" / ".cache").mkdir()
    shutil.copy(cat / "0.png", root / "train" / "stray.png")
    data = of_folder(root)
    assert len(data.train) == 12
    assert capsys.readouterr().out.splitlines() == [
        f"train: 12 images of 2 classes in {root}/train; left out: 1 .heic, 2 .txt, 4 hidden, "
        "1 in no class folder, 1 without a suffix",
        f"test: 12 images of 2 classes in {root}/val; left out: nothing",
    ]
    of_folder(root)
    assert capsys.readouterr().out == ""  # said once


def test_a_subset_of_a_folders_classes(tmp_path):
    root = image_folder(tmp_path, classes=("ant", "bee", "cow"))
    (tmp_path / "two.txt").write_text("cow\nant\n")
    assert of_folder(root, classes=("cow", "ant")).class_names == ["ant", "cow"]
    listed = of_folder(root, classes_file=str(tmp_path / "two.txt"))
    assert listed.class_names == ["ant", "cow"] and listed.train.labels.unique().tolist() == [0, 1]
    assert left_out(root, subset=("cow", "ant")) == "1 other classes"
    shutil.rmtree(root / "val" / "bee")  # nobody asked for it
    assert len(of_folder(root, classes=("cow", "ant")).test) == 12


def test_two_names_that_differ_in_case_alone_are_two_images(tmp_path):
    root = image_folder(tmp_path)
    shutil.copy(root / "train/cat/1.png", root / "train/cat/0.PNG")
    if len(list((root / "train/cat").iterdir())) == 6:
        pytest.skip("this file system takes them for one")
    assert len(of_folder(root).train) == 13


def test_links_to_images_and_folders_are_followed(tmp_path):
    root = image_folder(tmp_path / "images")
    shutil.move(root / "train/dog", tmp_path / "dogs")
    (root / "train/dog").symlink_to(tmp_path / "dogs")
    (root / "train/cat/6.png").symlink_to(tmp_path / "dogs/0.png")
    assert len(of_folder(root).train) == 13


# ---- layouts -------------------------------------------------------------------------------------


def test_a_labelled_test_is_preferred_to_val_and_that_is_said(tmp_path):
    root = image_folder(tmp_path)
    shutil.copytree(root / "val", root / "test")
    assert of_folder(root).test.paths[0].is_relative_to(root / "test")
    assert left_out(root, "test") == "1 other folder (val)"


@pytest.mark.parametrize("place", ["", "images"])
def test_an_unlabelled_test_is_passed_over_for_val(tmp_path, place):
    root = image_folder(tmp_path)
    (root / "test" / place).mkdir(parents=True)
    shutil.copy(root / "train/cat/0.png", root / "test" / place / "0.png")
    assert of_folder(root).test.paths[0].is_relative_to(root / "val")
    assert left_out(root, "test") == "1 other folder (test)"


def tiny_imagenet(root: Path) -> Path:
    """The layout of Tiny-ImageNet as it is distributed, with two classes."""
    made = image_folder(root, classes=("n01", "n02"))
    lines = []
    for label, name in enumerate(("n01", "n02")):
        (made / "train" / name / "images").mkdir()
        for path in sorted((made / "train" / name).glob("*.png")):
            shutil.move(path, path.parent / "images" / f"{name}_{path.name}")
        (made / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t9\t9\n")
        (made / "val" / "images").mkdir(exist_ok=True)
        for i, path in enumerate(sorted((made / "val" / name).glob("*.png"))):
            new = f"val_{2 * i + label}.png"
            shutil.move(path, made / "val" / "images" / new)
            lines.append(f"{new}\t{name}\t0\t0\t9\t9\n")
        (made / "val" / name).rmdir()
    (made / "val" / "val_annotations.txt").write_text("".join(lines))
    (made / "test" / "images").mkdir(parents=True)
    shutil.copy(made / "val/images/val_0.png", made / "test/images/test_0.png")
    return made


@pytest.mark.parametrize("stream", ["never", "always"])
def test_tiny_imagenet_is_read_as_it_is_distributed(tmp_path, stream):
    root = tiny_imagenet(tmp_path)
    data = of_folder(root, stream=stream)
    assert data.class_names == ["n01", "n02"] and len(data.train) == 12
    assert [p.name for p in data.test.paths[:3]] == ["val_0.png", "val_1.png", "val_10.png"]
    assert data.test.labels.tolist() == [0, 1, 0, 1] + [0, 1] * 4
    assert left_out(root) == "2 .txt"
    assert left_out(root, "test") == "1 other folder (test)"


def test_some_classes_of_tiny_imagenet(tmp_path):
    root = tiny_imagenet(tmp_path)
    shutil.copytree(root / "train/n01", root / "train/n03")
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write("val_99.png\tn03\t0\t0\t9\t9\n")
    shutil.copy(root / "val/images/val_0.png", root / "val/images/val_99.png")
    assert len(of_folder(root).test) == 13
    part = of_folder(root, classes=("n01", "n03"))
    assert part.test.labels.bincount().tolist() == [6, 1]


ANNOTATIONS = {
    "a class that train lacks": (
        lambda r: _append(r, "val_99.png\tn09\n"),
        "class 'n09' is not in both train and val: train lacks it; both need the same classes",
    ),
    "an image that is not there": (
        lambda r: (r / "val/images/val_3.png").unlink(),
        "{root}/val lacks val_3.png, which val_annotations.txt names; unpack it again",
    ),
    "two classes of one image": (
        lambda r: _append(r, "val_0.png\tn09\n"),
        "{root}/val/val_annotations.txt gives val_0.png two classes, n01 and n09; remove one of "
        "the lines",
    ),
    "a line without a class": (
        lambda r: _append(r, "val_0.png\n"),
        "{root}/val/val_annotations.txt needs a file name, a tab and a class in every line",
    ),
}


def _append(root, line):
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write(line)


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations_that_cannot_be_used(tmp_path, kind):
    damage, line = ANNOTATIONS[kind]
    root = tiny_imagenet(tmp_path)
    damage(root)
    assert refusal(root) == line.format(root=root)


# ---- what is refused -----------------------------------------------------------------------------


def _only(root, name):
    for split in ("train", "val"):
        for folder in (root / split).iterdir():
            if folder.name != name:
                shutil.rmtree(folder)


def _link(path, target):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


def _keep(folder, count):
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


MISSING = "no folder {root}; data=folder:PATH needs PATH/train/<class>/* and PATH/val or test"
PARTS = (
    "{root} needs the subfolders train and val (or test), one folder per class in each; it holds %s"
)
NO_IMAGE = "class folder {root}/%s holds no image; add images or remove it"
CLASSES = "class 'emu' is not in both train and val: %s lacks it; both need the same classes"
LOST = "{root}/train/%s is a link that leads nowhere; repair or remove it"
FEW = (
    "too few training images of %s: every class needs at least 2, for one is held out for "
    "validation; add images, or choose other `classes`"
)
FOLDERS = {
    "missing": (shutil.rmtree, MISSING),
    "a file": (lambda r: (shutil.rmtree(r), r.write_text("x")), MISSING),
    "no train": (lambda r: shutil.rmtree(r / "train"), PARTS % "val"),
    "no val": (lambda r: shutil.rmtree(r / "val"), PARTS % "train"),
    "another name": (lambda r: (r / "val").rename(r / "valid"), PARTS % "train, valid"),
    "neither": (lambda r: [shutil.rmtree(r / s) for s in ("train", "val")], PARTS % "no folder"),
    "classes alone": (
        lambda r: (
            [shutil.rmtree(r / s) for s in ("train", "val")]
            + [(r / f"c{i}").mkdir() for i in range(6)]
        ),
        PARTS % "c0, c1, c2, c3, 2 more",
    ),
    "empty class": (lambda r: _keep(r / "train/dog", 0), NO_IMAGE % "train/dog"),
    "empty class in val alone": (lambda r: _keep(r / "val/cat", 0), NO_IMAGE % "val/cat"),
    "class with a text alone": (
        lambda r: (_keep(r / "train/dog", 0), (r / "train/dog/a.txt").write_text("x")),
        "class folder {root}/train/dog holds no image (it holds 1 .txt); add images or remove it",
    ),
    "one class": (
        lambda r: _only(r, "cat"),
        "{root}/train holds 1 class folders; expected at least 2",
    ),
    "no class": (
        lambda r: _only(r, ""),
        "{root}/train holds 0 class folders; expected at least 2",
    ),
    "class of val that train lacks": (
        lambda r: shutil.copytree(r / "val/dog", r / "val/emu"),
        CLASSES % "train",
    ),
    "class of train that val lacks": (
        lambda r: shutil.copytree(r / "train/dog", r / "train/emu"),
        CLASSES % "val",
    ),
    "val without classes": (
        lambda r: (shutil.rmtree(r / "val"), (r / "val/images").mkdir(parents=True)),
        "{root}/val holds no folder that is named like a class of train; expected one folder per "
        "class",
    ),
    "a class of one image": (lambda r: _keep(r / "train/cat", 1), FEW % "'cat'"),
    "two classes of one image": (
        lambda r: [_keep(r / "train" / name, 1) for name in ("cat", "dog")],
        FEW % "'cat', 'dog'",
    ),
    "class that is a link to itself": (lambda r: _link(r / "train/dog", "dog"), LOST % "dog"),
    "image that is a link to itself": (
        lambda r: _link(r / "train/cat/3.jpg", "3.jpg"),
        LOST % "cat/3.jpg",
    ),
    "link to nothing": (
        lambda r: _link(r / "train/cat/3.jpg", "/nowhere"),
        LOST % "cat/3.jpg",
    ),
    "link back": (
        lambda r: (r / "train/cat/more").symlink_to(".."),
        "{root}/train/cat/more/cat is a link that leads back; remove it",
    ),
}


def test_a_hidden_link_to_nothing_is_no_image(tmp_path):
    """Emacs locks a file with such a link."""
    root = image_folder(tmp_path)
    (root / "train/cat/.#3.jpg").symlink_to("user@host.1234")
    assert left_out(root) == "1 hidden"


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_cannot_be_used(tmp_path, kind, stream):
    damage, line = FOLDERS[kind]
    root = image_folder(tmp_path / "images", suffix=".jpg")
    damage(root)
    assert refusal(root, stream=stream) == line.format(root=root)


def test_a_class_that_a_folder_lacks(tmp_path):
    root = image_folder(tmp_path)
    assert refusal(root, classes=("cat", "emu")) == (
        f"{root}/train has no class 'emu'; `classes` must name its subfolders"
    )


def test_a_list_of_classes_with_their_descriptions(tmp_path):
    root = image_folder(tmp_path)
    (tmp_path / "names.txt").write_text("cat, a small animal\ndog, a larger one\n")
    assert refusal(root, classes_file=str(tmp_path / "names.txt")) == (
        f"{root}/train has no class 'cat, a small animal'; `classes` must name its subfolders; "
        "give the name alone: 'cat'"
    )


def test_a_folder_given_without_its_prefix(tmp_path):
    root = image_folder(tmp_path)
    with pytest.raises(InputError) as caught:
        folder_config(root, data=str(root))
    assert str(caught.value) == f"unknown data '{root}': did you mean folder:{root}?"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_that_is_named_like_an_image_is_left_out(tmp_path):
    """To open it would wait for ever."""
    root = image_folder(tmp_path)
    os.mkfifo(root / "train/cat/pipe.png")
    assert len(of_folder(root).train) == 12
    assert left_out(root) == "1 no regular file"


@pytest.mark.parametrize("stream", ["never", "always"])
def test_test_images_that_are_training_images_as_well_are_counted(tmp_path, stream, capsys):
    root = image_folder(tmp_path / "images")
    shutil.copy(root / "train/cat/0.png", root / "val/dog/copy.png")
    of_folder(root, stream=stream)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == (
        f"test: 13 images of 2 classes in {root}/val; left out: nothing; 1 of them are training "
        "images as well"
    )
    shutil.rmtree(root / "val")
    (root / "val").symlink_to(root / "train")
    assert find_images(root)[1].repeated == 12
    assert find_images(root)[0].repeated == 0


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    root, real = image_folder(tmp_path), os.scandir

    def scandir(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(root) == f"cannot read {root}/train/dog (Permission denied)"


@pytest.mark.parametrize("stream", ["never", "always"])
def test_names_that_are_not_utf8(tmp_path, stream):
    root = image_folder(tmp_path / "images")
    odd = os.fsdecode(b"b\xff\n\x1b[31md")
    for split in ("train", "val"):
        os.rename(root / split / "cat", root / split / odd)
        os.rename(root / split / odd / "3.png", root / split / odd / os.fsdecode(b"\xe9.png"))
    data = of_folder(root, stream=stream)
    assert len(data.train) == 12
    assert "\\xff" in data.class_names[0] and data.class_names[0].isprintable()
    (root / "train" / odd / os.fsdecode(b"\xe9.png")).write_text("x")
    shown = r"b\xff\n\x1b[31md/\xe9.png"
    assert refusal(root, stream=stream) == (
        f"cannot read the image {root}/train/{shown} (UnidentifiedImageError); replace or remove it"
    )


def test_a_class_that_looks_like_a_comment_is_said(tmp_path):
    root = image_folder(tmp_path / "images")
    for split in ("train", "val"):
        if (root / split).is_dir():
            (root / split / "cat").rename(root / split / "#cat")
    (tmp_path / "names.txt").write_text("#cat\n# a comment\ndog\n")
    with pytest.raises(InputError, match="'#cat' in"):
        of_folder(root, classes_file=str(tmp_path / "names.txt"))
