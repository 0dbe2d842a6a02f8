"""Which image files of a folder belong to which split and class, and which files are left out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
START_READERS = 16  # threads: a network drive answers each of them after a while
LOST_LINK = "{} is a link that leads nowhere; repair or remove it"


@dataclass
class FolderSplit:
    """The image files of one split under `root`: path, place of the class, size in bytes."""

    root: Path
    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason: files
    repeated: int = 0  # images of a test split that the training split holds as well

    def report(self, role: str) -> str:
        """One line for a person: what was read, what was left out, and why."""
        left = ", ".join(f"{n} {why}" for why, n in sorted(self.left_out.items())) or "nothing"
        both = f"; {self.repeated} of them are training images as well" if self.repeated else ""
        return (
            f"{role}: {len(self.paths)} images of {len(set(self.labels))} classes in "
            f"{show_path(self.root)}; left out: {left}{both}"
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
            f"in each; it holds {_some(_class_folders(root))}"
        )
    names = _class_folders(train_root)
    if missing := sorted(set(subset) - set(names)):
        first = missing[0].split(maxsplit=1)[0].rstrip(",") if missing[0].split() else ""
        hint = f"; give the name alone: {first!r}" if first in names else ""
        raise InputError(
            f"{show_path(train_root)} has no class {missing[0]!r}; `classes` must name its "
            f"subfolders{hint}"
        )
    chosen = [name for name in names if not subset or name in subset]
    train = _read_class_folders(train_root, names, chosen)
    if len(chosen) < 2:
        raise InputError(
            f"{show_path(train_root)} holds {len(chosen)} class folders; expected at least 2"
        )
    test = _read_held_out(held_out, names, chosen)
    for split in (train, test):
        split.sizes = [path.stat().st_size for path in split.paths]
    test.repeated = _count_repeated(train, test)
    return train, test, chosen


def _some(names: Sequence[str]) -> str:
    """Names for a message: all of a few, else the first."""
    most = 4
    shown = [show_path(Path(name)) for name in names[:most]]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*shown, *more]) or "no folder"


def _count_repeated(train: FolderSplit, test: FolderSplit) -> int:
    """How many test files have the size and the first 4 kB of a training file: the same image.

    Only files of equal size are opened. A copy that was encoded anew is not seen.
    """
    common = set(train.sizes) & set(test.sizes)
    known = set(_starts(train, common))
    return sum(start in known for start in _starts(test, common))


def _starts(split: FolderSplit, sizes: set[int]) -> list[tuple[int, bytes]]:
    """(size, first 4 kB) of every file that has one of these sizes."""
    files = [file for file in zip(split.sizes, split.paths, strict=True) if file[0] in sizes]
    parts = [files[i::START_READERS] for i in range(START_READERS)]
    with ThreadPoolExecutor(START_READERS) as pool:
        return [start for part in pool.map(_read_starts, parts) for start in part]


def _read_starts(files: Sequence[tuple[int, Path]]) -> list[tuple[int, bytes]]:
    found = []
    for size, path in files:
        with open(path, "rb") as file:
            found.append((size, file.read(4096)))
    return found


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
        left_out: Counter[str] = Counter()
        files = sorted(_walk(root / name, left_out), key=lambda p: (str(p.parent), p.name))
        if not files:
            found = ", ".join(f"{n} {why}" for why, n in sorted(left_out.items()))
            instead = f" (it holds {found})" if found else ""
            raise InputError(
                f"class folder {show_path(root / name)} holds no image{instead}; add images or "
                "remove it"
            )
        split.left_out += left_out
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
    class_of: dict[str, str] = {}
    for file, label, *_ in lines:
        if class_of.setdefault(file, label) != label:
            raise InputError(
                f"{show_path(root / ANNOTATIONS)} gives {file} two classes, {class_of[file]} and "
                f"{label}; remove one of the lines"
            )
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
        elif not entry.is_file():
            left_out["no regular file"] += 1  # a pipe or a device: reading it may never end
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
        lost = entry.is_symlink() and not os.path.exists(entry.path)
        if lost and not _hidden(entry.name):
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
