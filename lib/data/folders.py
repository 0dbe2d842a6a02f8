"""Which image files of a folder belong to which split and class, and which files are left out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from lib.data.decoding import show_path
from lib.errors import InputError

# torchvision's IMG_EXTENSIONS and other common ones. Formats that need another program, such as
# .eps, and those that Pillow cannot open, such as .heic, are left out.
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif",
}  # fmt: skip
ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet: file name, class and box, a line an image
LOST_LINK = "{} is a link that leads nowhere; repair or remove it"


@dataclass
class FolderSplit:
    """The image files of one split: `paths` under `root`, and the place of each one's class."""

    root: Path
    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason: files

    def report(self, role: str) -> str:
        """One line for a person: what was read, what was left out, and why."""
        left = ", ".join(f"{n} {why}" for why, n in sorted(self.left_out.items())) or "nothing"
        return (
            f"{role}: {len(self.paths)} images of {len(set(self.labels))} classes in "
            f"{show_path(self.root)}; left out: {left}"
        )


def find_images(
    root: Path, subset: Sequence[str] = ()
) -> tuple[FolderSplit, FolderSplit, list[str]]:
    """Training and test files of a folder, and its class names in the order of their labels.

    root/train/<class>/** and root/test/<class>/** (or val) hold the images, at any depth. A test
    folder without classes is passed over for val. val may be Tiny-ImageNet's: one folder of images
    with val_annotations.txt. With `subset`, only these classes are read. Read is what a person
    sees and what torchvision's ImageFolder reads: every common format that Pillow can open, no
    hidden file (such as ._1.jpg), no __MACOSX.

    Raises InputError for every other layout, classes that differ between the splits, and links
    that lead nowhere or back.
    """
    train_root = root / "train"
    if not root.is_dir():
        raise InputError(
            f"no folder {show_path(root)}; data=folder:PATH needs PATH/train/<class>/* and "
            "PATH/val or test"
        )
    held_out = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not train_root.is_dir() or not held_out:
        raise InputError(
            f"{show_path(root)} needs the subfolders train and val (or test), one folder per class "
            "in each"
        )
    names = _class_folders(train_root)
    if missing := sorted(set(subset) - set(names)):
        raise InputError(
            f"{show_path(train_root)} has no class {missing[0]!r}; `classes` must name its "
            "subfolders"
        )
    chosen = [name for name in names if not subset or name in subset]
    train = _read_class_folders(train_root, names, chosen)
    if len(chosen) < 2:
        raise InputError(
            f"{show_path(train_root)} holds {len(chosen)} class folders; expected at least 2"
        )
    return train, _read_held_out(held_out, names, chosen), chosen


def _read_held_out(
    folders: Sequence[Path], names: Sequence[str], chosen: Sequence[str]
) -> FolderSplit:
    """The first of `folders` that has labels; the others are reported as left out."""
    for folder in folders:
        if (folder / ANNOTATIONS).is_file():
            split = _read_annotated(folder, names, chosen)
        elif set(found := _class_folders(folder)) & set(names):
            _check_same_classes(folder, found, names, chosen)
            split = _read_class_folders(folder, found, chosen)
        else:
            continue
        for other in set(folders) - {folder}:
            split.left_out[f"other folder ({other.name})"] += 1
        return split
    raise InputError(
        f"{show_path(folders[0])} holds no folder that is named like a class of train; expected "
        "one folder per class"
    )


def _check_same_classes(
    folder: Path, found: Sequence[str], names: Sequence[str], chosen: Sequence[str]
) -> None:
    """Raises InputError unless `folder` has the classes of train, or those chosen of them."""
    whole = len(chosen) == len(names)
    odd = sorted(set(found) ^ set(names) if whole else set(chosen) - set(found))
    if odd:
        where = "train lacks it" if odd[0] in found else f"{folder.name} lacks it"
        raise InputError(
            f"class {odd[0]!r} is not in both train and {folder.name}: {where}; both need the same "
            "classes"
        )


def _class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, sorted; what is hidden is none."""
    return sorted(e.name for e in _entries(folder) if e.is_dir() and not _hidden(e.name))


def _read_class_folders(root: Path, names: Sequence[str], chosen: Sequence[str]) -> FolderSplit:
    split = FolderSplit(root)
    if others := len(names) - len(chosen):
        split.left_out["other classes"] = others
    for entry in _entries(root):
        if entry.name not in names:
            split.left_out["hidden" if _hidden(entry.name) else "in no class folder"] += 1
    for label, name in enumerate(chosen):
        files = sorted(_walk(root / name, split.left_out), key=lambda p: (str(p.parent), p.name))
        if not files:
            raise InputError(
                f"class folder {show_path(root / name)} holds no image; add images or remove it"
            )
        split.paths += files
        split.labels += [label] * len(files)
    return split


def _read_annotated(root: Path, names: Sequence[str], chosen: Sequence[str]) -> FolderSplit:
    """Tiny-ImageNet's val: images in root or root/images, their classes in val_annotations.txt."""
    split = FolderSplit(root)
    lines = [line.split("\t") for line in read_lines(root / ANNOTATIONS)]
    if any(len(line) < 2 for line in lines):
        raise InputError(
            f"{show_path(root / ANNOTATIONS)} needs a file name, a tab and a class in every line"
        )
    class_of = {line[0]: line[1] for line in lines}
    _check_same_classes(root, sorted(set(class_of.values())), names, chosen)
    label_of = {name: label for label, name in enumerate(chosen)}
    seen = set()
    for path in sorted(_walk(root, split.left_out)):
        name = class_of.get(path.name)
        seen.add(path.name)
        if name in label_of:
            split.paths.append(path)
            split.labels.append(label_of[name])
        else:
            split.left_out["of other classes" if name else "without annotation"] += 1
    if lost := sorted(set(class_of) - seen):
        raise InputError(
            f"{show_path(root)} lacks {lost[0]}, which {ANNOTATIONS} names; unpack it again"
        )
    split.left_out[".txt"] -= 1  # the annotations were read
    split.left_out += Counter()  # drops zeros
    return split


def _walk(
    folder: Path, left_out: Counter[str], above: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Every image file under `folder`; others are counted in `left_out`."""
    place = os.path.realpath(folder)
    if place in above:
        raise InputError(f"{show_path(folder)} is a link that leads back; remove it")
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if _hidden(entry.name):
            left_out["hidden"] += 1
        elif entry.is_dir():
            yield from _walk(Path(entry.path), left_out, above | {place})
        elif suffix in _readable_suffixes():
            yield Path(entry.path)
        else:
            left_out[show_path(Path(suffix)) if suffix else "without a suffix"] += 1


@cache
def _readable_suffixes() -> set[str]:
    """Those that this machine's Pillow can open."""
    return SUFFIXES & set(Image.registered_extensions())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(LOST_LINK.format(show_path(Path(entry.path))))
    return entries


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without blank lines and those that start with #."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{show_path(path)} is no text in UTF-8; save it as such") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
