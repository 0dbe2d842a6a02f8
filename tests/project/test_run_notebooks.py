"""scripts/run_notebooks.py: an archive is unpacked once, and every notebook gets its parameters."""

import errno
import shutil

import pytest
import yaml
from papermill.exceptions import PapermillExecutionError
from support import image_folder

from lib.errors import InputError, UMAEError
from scripts import run_notebooks as script


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("inner", [True, False])
def test_an_archive_is_unpacked_once_beside_other_data(tmp_path, capsys, kind, inner):
    image_folder(tmp_path / "made" / "inner")
    root = tmp_path / "made" if inner else tmp_path / "made" / "inner"
    archive = script.Path(shutil.make_archive(str(tmp_path / "images"), kind, root))
    data = tmp_path / "data"
    folder = script.image_folder(archive, data)
    assert folder == data / "images" and len(list(folder.glob("train/cat/*.png"))) == 6
    assert list(data.iterdir()) == [folder]
    archive.write_bytes(b"")  # is not read again
    assert script.image_folder(archive, data) == folder
    assert capsys.readouterr().out.splitlines() == [
        f"unpacked into {folder}",
        f"{folder} is there: unpacked before; delete it to unpack {archive.name} again",
    ]


def test_what_is_no_folder_of_images_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    shutil.make_archive(str(tmp_path / "odd"), "zip", image_folder(tmp_path / "i") / "train")
    for name, line in {
        "b": "no folder and no archive",
        "a.txt": "is no archive; expected one of .tar",
        "odd.zip": "holds no folder train",
    }.items():
        with pytest.raises(InputError, match=line):
            script.image_folder(tmp_path / name, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(tmp_path, kind, damage):
    image_folder(tmp_path / "made")
    archive = script.Path(shutil.make_archive(str(tmp_path / "images"), kind, tmp_path / "made"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(range(256)) * 9)
    with pytest.raises(InputError, match=r"images\.\S+ cannot be unpacked: .+; fetch or pack"):
        script.image_folder(archive, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    image_folder(tmp_path / "made")
    archive = script.Path(shutil.make_archive(str(tmp_path / "i"), "zip", tmp_path / "made"))
    monkeypatch.setattr(script.shutil, "unpack_archive", full)
    with pytest.raises(OSError, match="No space left"):
        script.image_folder(archive, tmp_path / "data")


def test_every_notebook_gets_the_parameters_that_it_declares():
    given = {"epochs": 2, "data": "folder:/x", "model_ratios": [0.75]}
    got = dict(zip(script.NOTEBOOKS, script.parameters_of(script.NOTEBOOKS, given), strict=True))
    named = {path.stem: own for path, own in got.items()}
    assert list(named)[:2] == ["01_masking", "02_pretrain"] and len(named) == 8
    assert named["01_masking"] == {"data": "folder:/x"}
    assert named["03_linear_probe"] == {"epochs": 2, "data": "folder:/x"}
    assert named["08_mask_ratio"] == given
    with pytest.raises(InputError, match="no notebook has a parameter 'epoch': did you mean"):
        list(script.parameters_of(script.NOTEBOOKS, {"epoch": 2}))


def test_it_runs_the_notebooks_that_are_asked_for(tmp_path, monkeypatch, capsys, outputs):
    root, asked = image_folder(tmp_path / "images"), []
    monkeypatch.setattr(script, "run", lambda path, copy, own: asked.append((path.stem, own)))
    script.main([str(root), "--only", "03", "01", "--parameters", yaml.safe_dump({"epochs": 2})])
    own = {"preset": "tiny-imagenet-vit-micro", "data": f"folder:{root}"}
    assert asked == [("01_masking", own), ("03_linear_probe", {"epochs": 2, **own})]
    assert str(outputs / "notebooks") in capsys.readouterr().out
    for wrong, line in {
        "--only=09": "from 01 to 08",
        "--parameters=3": "must be a YAML dict",
        "--parameters={epochs: 2": "must be a YAML dict",
        "--parameters={data: digits}": "parameters hold data; give it as",
    }.items():
        with pytest.raises(InputError, match=line):
            script.main([str(root), wrong])


def test_a_notebook_that_stops_is_one_line(tmp_path, monkeypatch):
    def stop(*args, **options):
        raise PapermillExecutionError(1, 1, "", "InputError", "unknown preset", [])

    monkeypatch.setattr(script.papermill, "execute_notebook", stop)
    copy = tmp_path / "01_masking.ipynb"
    with pytest.raises(UMAEError) as caught:
        script.run(script.NOTEBOOKS[0], copy, {"preset": "x"})
    assert str(caught.value) == (
        f"01_masking stopped: InputError: unknown preset; as far as it came: {copy}"
    )
