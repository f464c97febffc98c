"""The documentation as pages: it builds without a warning, every link leads somewhere, and nothing comes from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
BUILD = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]


class Page(HTMLParser):
    """Links of a page, what it loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical" and "href" in given:
            self.loads.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", here / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", here)
    built = subprocess.run(BUILD, check=False, cwd=here, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return here / "build/site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_to_a_page_and_to_a_place_in_it(pages: dict[Path, Page]) -> None:
    broken = defaultdict(list)
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                address.fragment and target in pages and address.fragment not in pages[target].places
            ):
                broken[path.name].append(link)
    assert not broken
    assert sum(len(page.links) for page in pages.values()) > 500


def test_a_page_loads_nothing_from_outside(site: Path, pages: dict[Path, Page]) -> None:
    outside = re.compile(r"^(https?:)?//")
    assert not [load for page in pages.values() for load in page.loads if outside.match(load)]
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert styles and not [one for text in styles for one in re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)", text)]
    assert not [path for path in pages if "fonts.googleapis" in path.read_text()]


def test_every_page_can_be_found_from_the_menu(site: Path, pages: dict[Path, Page]) -> None:
    menu = {
        (site / urlsplit(link).path).resolve() for link in pages[site / "index.html"].links if not urlsplit(link).netloc
    }
    assert not [path.relative_to(site) for path in pages if path.resolve() not in menu]
