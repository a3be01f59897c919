"""The pictures of the README: they are there, they can be shown anywhere, and they are what the script takes."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium
from tests.e2e.processes import ROOT, python

README = (ROOT / "README.md").read_text("utf-8")
IMAGES = re.findall(r'!\[([^]]*)\]\(([^)]+)\)|<img src="([^"]+)" alt="([^"]*)">', README)
SOURCES = re.findall(r'srcset="([^"]+)"', README)
SVG = "{http://www.w3.org/2000/svg}"
PNG_LIMIT, SVG_LIMIT = 200_000, 150_000

STORY = [
    r"primary first\n.*\n.*\n.*app-1 .* 40%  up\n.*app-2 .* 40%  up\n.*app-3 .* 20%  up\n",
    r"app-1 .* 67%  up\n.*app-2 .* -  failed .*ECONNREFUSED.*\n.*app-3 .* 33%  up\n",
    r"app-1 .* 100%  up\n.*app-2 .* failed .*\n.*app-3 .* down by hand by jane until .*: new kernel\n",
    r"pool dr first\n.*\n.*\n.*app-1 .* failed .*\n.*app-2 .* failed .*\n.*app-3 .* down by hand",
    r"primary first\n.*\n.*\n.*app-1 .* 40%  up\n.*app-2 .* 40%  up\n.*app-3 .* 20%  up\n",
]
"""What is in the terminal one after the other."""


class Picture(NamedTuple):
    """A picture of pixels."""

    width: int
    height: int
    corner: tuple[int, ...]
    """The colour of its first pixel."""


def picture(file: Path) -> Picture:
    content = file.read_bytes()
    chunks = chunks_of(content)
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, kind) == (8, 2), "24 bits for a pixel"
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert len(pixels) == height * (1 + 3 * width)
    return Picture(width, height, tuple(pixels[1:4]))


def chunks_of(png: bytes) -> dict[bytes, bytes]:
    """Kinds and contents of what a PNG consists of, those of the same kind together."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        found[kind] = found.get(kind, b"") + png[at + 8 : at + 8 + length]
        at += 12 + length
    assert kind == b"IEND"
    return found


def frames_of(file: Path) -> list[str]:
    """The text of each frame of a film."""
    root = ElementTree.fromstring(file.read_text("utf-8"))
    lines = {text.get("id"): "".join(text.itertext()) for text in root.findall(f"{SVG}defs/{SVG}text")}
    strip = root.find(f"{SVG}svg/{SVG}g")
    assert strip is not None
    return ["".join(lines[use.get("href", "")[1:]] + "\n" for use in frame) for frame in strip]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the script has put pictures of a quick run."""
    directory = tmp_path_factory.mktemp("screens")
    command = python("-m", "example_project.screens", "--into", directory, "--warm-up", "0", "--pause", "0.1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[1-9]\d+ calls were answered, 0 failed\.$", done.stdout, re.MULTILINE), done.stdout
    return directory


@pytest.fixture(params=["README", "script"])
def pictures(request: pytest.FixtureRequest) -> Path:
    """The directory of the pictures, whichever they are."""
    return ROOT / "docs" if request.param == "README" else Path(request.getfixturevalue("taken"))


def test_each_picture_of_the_readme_is_there_and_described() -> None:
    named = [(one or other, text or more) for text, one, other, more in IMAGES]
    assert {name for name, _ in named} == {"docs/watch.svg", "docs/status-light.png"}
    assert SOURCES == ["docs/status-dark.png"]
    assert all(len(text) > 40 for _, text in named)
    there = {str(file.relative_to(ROOT)) for file in (ROOT / "docs").iterdir()}
    assert there == {*SOURCES, *(name for name, _ in named)}


def test_the_page_is_shown_in_both_themes(pictures: Path) -> None:
    light, dark = (picture(pictures / f"status-{theme}.png") for theme in ("light", "dark"))
    assert light.width == dark.width > 1600
    assert light.width > light.height > 600
    assert abs(light.height - dark.height) < 60, "a line more or less: time goes on between them"
    assert min(light.corner) > 220
    assert max(dark.corner) < 40
    assert all(file.stat().st_size < PNG_LIMIT for file in pictures.glob("*.png"))


def test_the_film_needs_nothing_from_elsewhere_and_runs_nothing(pictures: Path) -> None:
    text = (pictures / "watch.svg").read_text("utf-8")
    assert len(text) < SVG_LIMIT
    for element in ElementTree.fromstring(text).iter():
        assert element.tag.removeprefix(SVG) in {
            *("svg", "title", "style", "defs", "text", "tspan", "rect", "circle", "g", "use"),
        }
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert value.startswith("#") or "href" not in name
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg\")", text)


def test_the_film_tells_the_story(pictures: Path) -> None:
    frames = iter(frames_of(pictures / "watch.svg"))
    for part in STORY:
        assert any(re.search(part, frame) for frame in frames), f"not shown, or not then: {part}"


def test_the_film_starts_and_ends_with_all_hosts_up(pictures: Path) -> None:
    first, *_, last = frames_of(pictures / "watch.svg")
    assert re.search(STORY[0], first)
    assert re.search(STORY[0], last)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


# For each part of the time, the first frame that does not lie above the window
SHOWN = """(parts) => parts.map((part) => {
  for (const film of document.getAnimations()) {
    film.pause();
    film.currentTime = part * film.effect.getTiming().duration;
  }
  return [...document.querySelectorAll("#strip > g")].findIndex((frame) => frame.getBoundingClientRect().top >= 0);
})"""


def test_a_browser_shows_one_frame_after_the_other(browser: Browser, pictures: Path) -> None:
    film = pictures / "watch.svg"
    count = len(frames_of(film))
    page = browser.new_page()
    page.goto(film.as_uri())
    shown = page.evaluate(SHOWN, [part / 2000 for part in range(2000)])
    assert shown == sorted(shown)
    assert set(shown) == set(range(count))


def test_it_is_a_still_for_who_wants_nothing_to_move(browser: Browser) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.goto((ROOT / "docs" / "watch.svg").as_uri())
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate(SHOWN, [0]) == [0]
