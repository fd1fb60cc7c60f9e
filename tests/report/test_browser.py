"""The page of `compare.py` in a real browser, headless: what a click, a key and a pointer do. `make test-browser`."""

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import compare as script
from tests.report.test_compare import HOSTILE, write_run, write_study

pytestmark = pytest.mark.browser
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("browser")
    write_study(top / "runs")
    write_run(top / "runs" / "named", "attention=dense", f'name="{HOSTILE}"', curve={50: 0.5, 100: 0.6})
    words = [str(top / "runs"), "--output", str(top / "out"), "--baseline", "dense, name=lamps_isa"]
    assert script.main(words) == 0
    return (top / "out" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, "expected chromium and chromium-driver (Debian's names) to be installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(params=list(WIDTHS))
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    width = WIDTHS[request.param]
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == [], "nothing on the console, of the policy neither"
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked, "the page itself is asked for"
    assert all(url.startswith("data:") or url.split("#")[0] == address for url in asked), asked


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def find_all(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def rows_of(page: Any) -> list[int]:
    return [
        int(line.get_attribute("data-row"))
        for line in find_all(page, "#table tbody tr")
        if line.is_displayed()
    ]


def drawn(page: Any, chart: str) -> set[int]:
    return {int(node.get_attribute("data-row")) for node in find_all(page, f"{chart} g[data-row]")}


def click(page: Any, node: Any) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()


def choose(page: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(find(page, f"#{name}")).select_by_value(value)


def test_a_click_on_a_header_sorts_and_another_turns_round(page: Any) -> None:
    before = rows_of(page)
    scores = {row: data["mean"] for row, data in enumerate(held(page)["rows"])}
    header = find_all(page, "#table thead button")[2]
    click(page, header)
    assert [scores[row] for row in rows_of(page)] == sorted(scores.values(), reverse=True)
    click(page, header)
    assert [scores[row] for row in rows_of(page)] == sorted(scores.values())
    assert find_all(page, "#table thead th")[2].get_attribute("aria-sort") == "ascending"
    click(page, find_all(page, "#table thead button")[0])
    assert rows_of(page) == before
    size = find_all(page, "#table thead button")[4]
    click(page, size)
    assert find_all(page, "#table tbody tr")[-1].get_attribute("data-row") == "2", (
        "what is not known comes last"
    )
    click(page, size)
    assert find_all(page, "#table tbody tr")[-1].get_attribute("data-row") == "2"


def test_the_filter_and_the_ticks_hide_rows_and_what_is_drawn_of_them(page: Any) -> None:
    every = set(rows_of(page))
    assert drawn(page, "#cost-chart") == every - {2}, "the old runs have no cost"
    assert drawn(page, "#curve-chart") == every
    find(page, "#filter").send_keys("isa-4")
    assert set(rows_of(page)) == drawn(page, "#curve-chart") == {2, 3}
    find(page, "#filter").clear()
    find(page, "#filter").send_keys(" ")
    tick = find(page, "#table tr[data-row='0'] input")
    click(page, tick)
    assert drawn(page, "#curve-chart") == every - {0}
    assert drawn(page, "#cost-chart") == every - {0, 2}
    assert 0 in rows_of(page), "it can be ticked again"
    click(page, find(page, "#none"))
    assert drawn(page, "#curve-chart") == drawn(page, "#cost-chart") == set()
    assert not any(node.is_displayed() for node in find_all(page, "figure"))
    click(page, find(page, "#all"))
    assert drawn(page, "#curve-chart") == every


def test_the_cost_axis_is_chosen_and_each_point_says_what_it_is(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def places() -> list[tuple[float, float]]:
        spots = [node.rect for node in find_all(page, "#cost-chart g[data-row] .point")]
        return [(round(spot["x"]), round(spot["y"])) for spot in spots]

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", find(page, "#cost-chart"))
    logarithmic = places()
    click(page, find(page, "#cost-log"))
    assert places() != logarithmic
    choose(page, "cost-axis", "ms")
    assert "milliseconds a step" in find(page, "#cost-chart svg").get_attribute("aria-label")
    old = find(page, "#cost-chart g[data-row='2']")
    assert old.is_displayed(), "their time is known"
    ActionChains(page).move_to_element(find(page, "#cost-chart g[data-row='2'] .point")).perform()
    said = find(page, "#tip")
    assert said.is_displayed()
    assert said.text.splitlines()[0] == held(page)["rows"][2]["label"]
    assert "83.00 % ± 4.24 %, 2 seeds" in said.text
    find(page, "body").send_keys(Keys.ESCAPE)
    assert not said.is_displayed()
    page.execute_script("arguments[0].focus()", old)
    assert said.is_displayed(), "the keyboard reaches it too"


def test_curves_follow_pointer_and_arrow_keys(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chart = find(page, "#curve-chart svg")
    click(page, find(page, "#none"))
    click(page, find(page, "#table tr[data-row='4'] input"))
    click(page, find(page, "#curve-seeds"))
    chart = find(page, "#curve-chart svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    path = find(page, "#curve-chart .mean").rect
    box = chart.rect
    right = path["x"] + path["width"] - box["x"] - box["width"] / 2
    up = path["y"] - box["y"] - box["height"] / 2
    ActionChains(page).move_to_element_with_offset(chart, round(right) - 1, round(up) + 1).perform()
    tip = find(page, "#tip")
    assert tip.text.splitlines()[1] == "step 100: 93.00 %"
    assert tip.text.splitlines()[0].endswith(", mean")
    page.execute_script("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_LEFT)
    assert tip.text.splitlines()[1] == "step 50: 50.00 %"
    choose(page, "curve-metric", "train/loss")
    chart = find(page, "#curve-chart svg")
    page.execute_script("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_RIGHT)
    assert tip.text.splitlines()[1] == "step 10: 0.1"


def test_heat_maps_say_their_values_and_pictures_are_there(page: Any) -> None:
    grid = find_all(page, "#grids td")
    assert [cell.text for cell in grid] == ["83.00", "70.00", "", "93.00"]
    page.execute_script("arguments[0].focus()", grid[0])
    assert "83.00 % ± 4.24 %, 2 seeds" in find(page, "#tip").text
    names = [node.text for node in find_all(page, "#classes tbody th")]
    assert names == held(page)["classes"]
    cell = find(page, "#classes td[data-row='4']")
    assert cell.text == "+1.0"
    page.execute_script("arguments[0].focus()", cell)
    assert "baseline 93.00 %" in find(page, "#tip").text
    widths = page.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert widths == [760] * 4


def test_what_runs_say_is_shown_as_text(page: Any) -> None:
    assert page.execute_script("return document.scripts.length") == 2
    assert HOSTILE in find(page, "#unlucky").text
    assert any(row["label"].endswith(f"name={HOSTILE}") for row in held(page)["rows"])
    drawn_names = find(page, "#curve-chart").get_attribute("textContent")
    assert "dense, name=<script>" in drawn_names or page.execute_script("return innerWidth") < 600
    click(page, find(page, "#runs summary"))
    assert HOSTILE in find(page, "#runs details[open] td").text


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    wide, screen = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen


def test_dark_and_light_are_different_and_both_can_be_read(browser: Any, address: str) -> None:
    contrasts = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(address)
        paper, *inks = browser.execute_script(
            "const of = (s, k) => getComputedStyle(document.querySelector(s))[k];"
            "return [of('body', 'backgroundColor'), of('body', 'color'), of('.hint', 'color'),"
            " ...[...document.querySelectorAll('.swatch line')].map(n => getComputedStyle(n).stroke)]"
        )
        contrasts.append((_luminance(paper), [_contrast(paper, ink) for ink in inks]))
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        assert len(base64.b64decode(shot)) > 10_000
    assert contrasts[0][0] > 0.9 > 0.1 > contrasts[1][0]
    for _, (ink, soft, *swatches) in contrasts:  # WCAG 2.2: 4.5 for text, 3 for graphics
        assert min(ink, soft) >= 4.5
        assert min(swatches) >= 3


def held(page: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(find(page, "#data").get_attribute("textContent"))
    return content


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
