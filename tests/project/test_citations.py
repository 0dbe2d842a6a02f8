"""Every file, notebook, make target and symbol that a text of the repository cites exists."""

import json
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SUFFIXES = {".py", ".c", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".cff"}
FOLDERS = "lib|tests|docs|notebooks|benchmarks|study|scripts|outputs/reference|solutions"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]+\.(?:py|c|md|ipynb|png|json|txt)\b")
NOTEBOOK = re.compile(r"(?<![\w/-])\d\d[a-z]?_[a-z][a-z0-9_]*(?=`|\.ipynb)")
TEST_FILE = re.compile(r"(?<![\w/.-])test_\w+\.py\b")
LINK = re.compile(r"\]\(([^)#\s]+?)(?:#[\w-]+)?\)")


def repository_files() -> list[Path]:
    command = ["git", "-C", REPO, "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode != 0:
        return []
    return [REPO / name for name in listed.stdout.splitlines() if (REPO / name).is_file()]


def is_checked(path: Path) -> bool:
    """Texts of people; not the executed copies, and not these tests with their made-up names."""
    name = path.relative_to(REPO).as_posix()
    return path.suffix in SUFFIXES and not name.startswith(("outputs/", "tests/project/"))


FILES = repository_files()
TEXTS = [path for path in FILES if is_checked(path)]
NAMES = {path.name for path in FILES}
NOTEBOOKS = {path.stem for path in (REPO / "notebooks").glob("*.ipynb")}


def read(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def missing(path: Path) -> list[str]:
    """What the text of `path` cites and the repository does not have."""
    text = read(path)
    paths = [name for name in PATH.findall(text) if "NAME" not in name]
    found = [name for name in paths if not (REPO / name).exists()]
    if path.suffix in (".md", ".ipynb"):
        found += [name for name in NOTEBOOK.findall(text) if name not in NOTEBOOKS]
        targets = [link for link in LINK.findall(text) if "://" not in link and "\\" not in link]
        found += [link for link in targets if not (path.parent / link).exists()]
    found += [name for name in TEST_FILE.findall(text) if name not in NAMES]
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(REPO).as_posix())
def test_what_a_file_cites_exists(path):
    assert missing(path) == []


def test_a_citation_of_nothing_is_found(tmp_path):
    text = "See lib/nothing.py, [this](nowhere.md), `77_nothing` and tests/test_nothing.py."
    (tmp_path / "a.md").write_text(text)
    assert set(missing(tmp_path / "a.md")) == {
        "lib/nothing.py",
        "nowhere.md",
        "77_nothing",
        "tests/test_nothing.py",
    }


def test_make_targets_that_texts_name_exist():
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (REPO / "Makefile").read_text(), re.MULTILINE))
    for path in [path for path in TEXTS if path.suffix == ".md"]:
        for name in re.findall(r"`make ([a-z-]+)", path.read_text()):
            assert name in targets, f"{path.name}: make {name}"


def test_make_help_lists_every_target():
    text = (REPO / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony is not None
    listed = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert listed == set(phony[1].split())
