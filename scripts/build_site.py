"""`make site`: the pages of docs/, the executed notebooks and the API, as one folder of HTML.

The site needs no server and no network: open build/site/html/index.html. This script lays the
pages out as in the repository, so that their links to each other work, and calls Sphinx, which
executes nothing. It ends with an error where Sphinx warns or a page asks another host.
"""

import html.parser
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from sphinx.cmd.build import build_main

import lib

REPO = Path(__file__).resolve().parents[1]
SITE = REPO / "build" / "site"
FIRST = ["results", "theory", "speed", "architecture", "cluster", "teaching", "symbols"]
FETCHING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


def modules() -> dict[str, str]:
    """The modules of lib without the entry points, and autodoc's options for each.

    A package only hands on names of its modules, which are described there.
    """
    found = {m.name: m.ispkg for m in pkgutil.walk_packages(lib.__path__, "lib.")}
    options = {True: "   :no-index:", False: "   :members:"}
    return {name: options[p] for name, p in found.items() if not name.endswith("__main__")}


def pages() -> list[str]:
    """The pages of docs/, the best known first, and what a contributor reads."""
    names = [path.stem for path in sorted((REPO / "docs").glob("*.md"))]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [*(f"docs/{name}.md" for name in names), "CONTRIBUTING.md", "CHANGELOG.md"]


def toctree(caption: str, names: list[str]) -> str:
    lines = "\n".join(names)
    return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n:maxdepth: 1\n\n{lines}\n```\n"


def write_api(folder: Path) -> list[str]:
    """One page for each module, from its docstrings; the names of the pages."""
    folder.mkdir(parents=True)
    for name, options in modules().items():
        title = f"{name}\n{'=' * len(name)}\n\n"
        body = f".. automodule:: {name}\n{options}\n"
        (folder / f"{name}.rst").write_text(title + body)
    return [f"api/{name}" for name in modules()]


def with_alt_texts(path: Path) -> nbformat.NotebookNode:
    """The notebook, each figure with the headings above it as its text for those who cannot see."""
    notebook = nbformat.read(path, 4)
    title = section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for level, heading in re.findall(r"^(#+) (.+)$", cell.source, re.MULTILINE):
                title, section = (heading, "") if level == "#" else (title, heading)
        else:
            alt = f"Figure: {title}. {section}".strip(" .")
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def copy_notebooks(folder: Path) -> list[str]:
    """Executed copies, or the source where there is none; the names of the pages."""
    folder.mkdir(parents=True)
    names = []
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        executed = REPO / "outputs" / "reference" / "executed" / path.name
        notebook = with_alt_texts(executed if executed.is_file() else path)
        nbformat.write(notebook, folder / path.name)
        names.append(f"notebooks/{path.stem}")
    return names


def lay_out(source: Path) -> None:
    """All pages under `source`, where they lie in the repository."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copy(REPO / "docs" / "conf.py", source)
    shutil.copytree(REPO / "docs" / "_static", source / "_static")
    shutil.copytree(
        REPO / "solutions", source / "solutions", ignore=shutil.ignore_patterns("__pycache__")
    )  # files that the notebooks link to
    for name in pages():
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, source / name)
    shutil.copytree(
        REPO / "outputs" / "reference", source / "outputs" / "reference",
        ignore=shutil.ignore_patterns("*.ipynb", "executed"),
    )  # fmt: skip
    text = (REPO / "README.md").read_text()
    text += toctree("Notebooks", copy_notebooks(source / "notebooks"))
    text += toctree("Pages", [name.removesuffix(".md") for name in pages()])
    text += toctree("API", write_api(source / "api"))
    (source / "index.md").write_text(text)


class Links(html.parser.HTMLParser):
    """What a page fetches when it is opened, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.without_alt: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.update(found[name] for name in ("id", "name") if name in found)
        if tag in FETCHING and FETCHING[tag] in found and found.get("rel") != "canonical":
            self.fetched.append(found[FETCHING[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img" and not found.get("alt"):
            self.without_alt.append(found.get("src", ""))


def read_pages(folder: Path) -> dict[Path, Links]:
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts:
            pages[path] = Links()
            pages[path].feed(path.read_text())
    return pages


def problems(folder: Path) -> list[str]:
    """Requests to other hosts, links and files that lead nowhere, pictures without a text."""
    pages = read_pages(folder)
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        for target in page.fetched + page.links:
            problem = _problem(path, target, pages, fetched=target in page.fetched)
            found += [f"{name}: {problem}"] if problem else []
        found += [f"{name}: {src} has no alt text" for src in page.without_alt]
    for path in [*folder.rglob("*.css")]:
        for target in re.findall(r"(?:url\(|@import )[\"']?(https?://[^\"')]+)", path.read_text()):
            found.append(f"{path.relative_to(folder)}: asks {target}")
    return found


def _problem(path: Path, target: str, pages: dict[Path, Links], fetched: bool) -> str:
    """What is wrong with one link of a page, or nothing."""
    url = urlsplit(target)
    if url.scheme in ("http", "https") or url.netloc:
        return f"asks {target}" if fetched else ""
    if url.scheme:
        return ""
    file = (path.parent / unquote(url.path)).resolve() if url.path else path
    if not file.exists():
        return f"{target} leads nowhere"
    if url.fragment and file in pages and unquote(url.fragment) not in pages[file].anchors:
        return f"{target}: there is no such section"
    return ""


def main() -> None:
    lay_out(SITE / "source")
    shutil.rmtree(SITE / "html", ignore_errors=True)
    code = build_main(["-q", "-b", "html", str(SITE / "source"), str(SITE / "html")])
    found = problems(SITE / "html")
    for line in found:
        print(line)
    files = [path for path in (SITE / "html").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    count = len(read_pages(SITE / "html"))
    print(f"{count} pages, {size:.1f} MB, {len(found)} problems: {SITE / 'html' / 'index.html'}")
    sys.exit(code or bool(found))


if __name__ == "__main__":
    main()
