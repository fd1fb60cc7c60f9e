"""`isaseg demo` in a real browser, headless: what visitors do to the page, and strangers. `make test-browser`."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isaseg.data.sets.lamps import CLASSES, PALETTE
from tests.inference.tiny import make_checkpoint, save_picture

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Give the process of a demo of a network of Lamps and the address of its page."""
    folder = tmp_path_factory.mktemp("demo")
    attention = {"name": "InterlacedSparseAttention", "group_size": [8, 8]}
    known = {
        "attention": attention,
        "data": "lamps",
        "classes": [*CLASSES[:-1], "<b>lamp</b>"],
        "palette": PALETTE.tolist(),
    }
    checkpoint = make_checkpoint(folder / "lamps.safetensors", len(CLASSES), **known)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "isaseg.cli", "demo", f"checkpoint={checkpoint}", f"port={port}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"the page is at http://127.0.0.1:{port}; Ctrl-C closes it\n"
        yield process.pid, f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(60) == 143
    assert [path.name for path in folder.iterdir()] == ["lamps.safetensors"], "uploads are deleted"


@pytest.fixture
def page(browser: Any, server: tuple[int, str]) -> Iterator[Any]:
    open_page(browser, server[1])
    yield browser
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((server[1], "data:", "blob:")) for url in asked), asked


def open_page(browser: Any, address: str) -> None:
    browser.get(address)
    until(browser, lambda: find_all(browser, "#file input[type=file]"))


def find_all(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def until(page: Any, condition: Callable[[], object]) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(page, 120, ignored_exceptions=[StaleElementReferenceException])
    waiting.until(lambda _: condition(), "the page says: " + page.find_element("css selector", "body").text)


def status(page: Any) -> str:
    return str(page.find_element("css selector", "#status").text)


def place(page: Any) -> tuple[int, int]:
    """Return the row and the column of which the page says that they were clicked."""
    row, column = re.findall(r"\d+", page.find_element("css selector", "#attention").text)
    return int(row), int(column)


def drop(page: Any, path: Path) -> None:
    (field,) = find_all(page, "#file input[type=file]")
    field.send_keys(str(path))


def source(page: Any, panel: str) -> str:
    images = find_all(page, f"#{panel} img")
    return str(images[0].get_attribute("src")) if images else ""


def click(page: Any, panel: str, right: float, down: float) -> None:
    """Click on a picture, at these shares of its width and height."""
    from selenium.webdriver import ActionChains

    loaded = f"return !!document.querySelector('#{panel} img')?.naturalWidth"
    until(page, lambda: page.execute_script(loaded))
    (image,) = find_all(page, f"#{panel} img")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    natural = [int(image.get_property(key)) for key in ("naturalWidth", "naturalHeight")]
    factor = min(
        image.size["width"] / natural[0], image.size["height"] / natural[1]
    )  # it is centred in its panel
    offset = round((right - 0.5) * natural[0] * factor), round((down - 0.5) * natural[1] * factor)
    ActionChains(page).move_to_element_with_offset(image, *offset).click().perform()


def test_a_picture_is_labelled_and_a_click_shows_what_the_pixel_attends_to(page: Any, tmp_path: Path) -> None:
    drop(page, save_picture(tmp_path / "a.png", 96, 128))
    until(page, lambda: status(page) == "128 x 96 pixels.")
    until(page, lambda: find_all(page, "#labels img") and find_all(page, "#confidence img"))
    chips = [chip.text for chip in find_all(page, "#legend span.class")]
    shares = [float(re.search(r"([\d.]+) %$", chip)[1]) for chip in chips]  # type: ignore[index]
    assert len(chips) > 2 and shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert any(chip.startswith("<b>lamp</b> ") for chip in chips), "names are shown as text"
    assert not find_all(page, "#attention img")
    click(page, "labels", 0.1, 0.1)
    until(page, lambda: source(page, "attention"))
    first, (row, column) = source(page, "attention"), place(page)
    assert abs(row - 9.6) <= 2 and abs(column - 12.8) <= 2
    click(page, "picture", 0.9, 0.8)
    until(page, lambda: source(page, "attention") not in ("", first))
    row, column = place(page)
    assert abs(row - 76.8) <= 2 and abs(column - 115.2) <= 2


def test_a_scene_is_chosen_and_the_next_picture_dropped(page: Any, tmp_path: Path) -> None:
    find_all(page, "#scenes button img")[1].click()
    until(page, lambda: "128 x 128 pixels" in status(page) and source(page, "labels"))
    first = source(page, "labels")
    drop(page, save_picture(tmp_path / "b.jpg", 50, 60))
    until(page, lambda: "60 x 50 pixels" in status(page) and source(page, "labels") != first)


def test_files_that_are_no_pictures_are_refused_on_the_page(page: Any, tmp_path: Path) -> None:
    text, bomb, script = (tmp_path / name for name in ("text.png", "bomb.png", "script.png"))
    text.write_text("<script>alert(1)</script>")
    Image.new("1", (20_000, 20_000)).save(bomb)
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert bomb.stat().st_size < 200_000
    for path, message in (
        (text, "expected a readable file: no image in 'text.png'; replace the file"),
        (bomb, "expected at most max_pixels=100000000, got more in 'bomb.png'"),
        (script, "expected a readable file: no image in 'script.png'"),
    ):
        drop(page, path)
        until(page, lambda m=message: m in status(page))
        assert find_all(page, "#status .error") and not find_all(page, "#labels img")
    drop(page, save_picture(tmp_path / "good.png", 50, 60))
    until(page, lambda: "60 x 50 pixels" in status(page) and source(page, "labels"))


def test_two_visitors_at_once_see_their_own_pictures(
    page: Any, server: tuple[int, str], tmp_path: Path
) -> None:
    first = page.current_window_handle
    page.switch_to.new_window("tab")
    second = page.current_window_handle
    open_page(page, server[1])
    sizes = {first: (40, 50), second: (60, 80)}
    for tab, (height, width) in sizes.items():
        page.switch_to.window(tab)
        drop(page, save_picture(tmp_path / f"{width}.png", height, width))
    for right in (0.25, 0.75):
        for tab, (height, width) in sizes.items():
            page.switch_to.window(tab)
            if right == 0.25:
                until(page, lambda h=height, w=width: f"{w} x {h} pixels" in status(page))
            before = source(page, "attention")
            click(page, "labels", right, 0.5)
            until(page, lambda b=before: source(page, "attention") not in ("", b))
            row, column = place(page)
            assert abs(row - height / 2) <= 2 and abs(column - right * width) <= 2
    page.close()
    page.switch_to.window(first)


def test_a_wide_picture_takes_bounded_memory(page: Any, server: tuple[int, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    coarse.resize((10_000, 7_500)).save(tmp_path / "wide.jpg", quality=50)
    before = peak(server[0])
    drop(page, tmp_path / "wide.jpg")
    until(page, lambda: "10000 x 7500 pixels, reduced to 1024 x 768" in status(page))
    click(page, "labels", 0.5, 0.5)
    until(page, lambda: source(page, "attention"))
    grown = peak(server[0]) - before
    print(f"peak memory of the server: {before} MiB, then {before + grown} MiB")
    assert grown < 1200, "the picture is 225 MB"


def peak(process: int) -> int:
    """Return the most memory that a process has held, in MiB."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found) // 1024
