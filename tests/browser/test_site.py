"""Every page of the site, opened from disk: no error, no other host, no picture missing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
REPO = Path(__file__).resolve().parents[2]
PHONE = {"width": 390, "height": 844}
HTML = REPO / "build" / "site" / "html"


@pytest.fixture(scope="module")
def pages(browser) -> list[Path]:
    """The pages of the site, built anew; the build itself fails on a broken link."""
    built = subprocess.run(
        [sys.executable, "scripts/build_site.py"], cwd=REPO, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-2000:]
    return sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)


def watch(page) -> list[str]:
    """A list that fills with what goes wrong while `page` opens files."""
    found: list[str] = []
    page.on("console", lambda m: found.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("request", lambda r: None if local(r.url) else found.append(f"asks {r.url}"))
    return found


def local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


def missing_pictures(page) -> list[str]:
    broken = "images => images.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    return [f"missing {src}" for src in page.eval_on_selector_all("img", broken)]


def too_wide(page) -> list[str]:
    """Wide tables and formulas scroll by themselves: the page does not."""
    width = page.evaluate("document.documentElement.scrollWidth")
    return [f"{width} pixels wide on a phone"] if width > PHONE["width"] + 10 else []


def test_every_page_opens_without_an_error_and_fits_on_a_phone(browser, pages):
    """Opened at a phone's width only: what a page asks for does not depend on it."""
    assert len(pages) > 20
    page = browser.new_page(viewport=PHONE)
    noticed = watch(page)
    found = {}
    for path in pages:
        noticed.clear()
        page.goto(path.as_uri(), wait_until="load")
        problems = [*noticed, *missing_pictures(page), *too_wide(page)]
        if problems:
            found[path.relative_to(HTML).as_posix()] = problems
    page.close()
    assert found == {}


def test_formulas_are_drawn(browser, pages):
    page = browser.new_page()
    page.goto((HTML / "docs" / "theory.html").as_uri(), wait_until="load")
    page.wait_for_selector("mjx-container", timeout=30_000)
    assert page.locator("mjx-merror").count() == 0
    page.close()


def test_the_search_finds_a_word_without_a_server(browser, pages):
    page = browser.new_page()
    page.goto((HTML / "search.html").as_uri() + "?q=uniformity", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=30_000)
    page.close()
