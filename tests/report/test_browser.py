"""The page of `compare.py` in a real browser, headless: what a click and a key do. `make test-browser`."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import compare as script
from tests.report.fake_runs import CLASSES, HOSTILE, write_run, write_study

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
    assert browser.get_log("browser") == [], "no error, and no violation of the policy"
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked, "at least the page itself"
    assert all(url.startswith("data:") or url.split("#")[0] == address for url in asked), asked


def find_all(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def rows_of(page: Any) -> list[str]:
    return [line.text for line in find_all(page, "#table tbody th")]


def click(page: Any, node: Any) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()


def traces(page: Any, chart: int, key: str) -> list[Any]:
    """Return what Plotly draws: a key of each trace of a chart."""
    script = "return document.querySelectorAll('.chart')[arguments[0]].data.map(trace => trace[arguments[1]])"
    return list(page.execute_script(script, chart, key))


def test_a_click_on_a_header_sorts_and_another_turns_round(page: Any) -> None:
    before = rows_of(page)
    assert len(before) == 5
    header = find_all(page, "#table thead th")[2]

    def scores() -> list[float]:
        cells = find_all(page, "#table tbody td:nth-child(3)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    first = scores()
    click(page, header)
    assert scores() == sorted(first, reverse=True)
    click(page, header)
    assert scores() == sorted(first)
    assert header.get_attribute("aria-sort") == "ascending"
    header.send_keys("\ue007")  # Enter
    assert scores() == sorted(first, reverse=True), "the keyboard sorts too"
    click(page, find_all(page, "#table thead th")[0])
    assert rows_of(page) == before
    (parameters,) = (head for head in find_all(page, "#table thead th") if head.text.startswith("parameters"))
    for _ in range(2):
        click(page, parameters)
        assert rows_of(page)[-1].startswith("isa-4x4"), "unknown values come last"


def test_charts_are_drawn_and_a_click_on_the_legend_hides_a_row(page: Any) -> None:
    cost, curves = find_all(page, ".chart")
    points = cost.find_elements("css selector", ".scatterlayer .point")
    assert len(points) == 4 + (3 + 1 + 1 + 3), (
        "a mean and seeds for each row; the cost of the old runs is not known"
    )
    assert len(curves.find_elements("css selector", ".scatterlayer path.js-line")) >= 12
    toggle = curves.find_elements("css selector", ".legendtoggle")[0]
    page.execute_script(
        "for (const kind of ['mousedown', 'mouseup']) arguments[0].dispatchEvent(new MouseEvent(kind, {bubbles: true}))",
        toggle,
    )
    until(page, lambda: "legendonly" in traces(page, 1, "visible"))
    hidden = [kind == "legendonly" for kind in traces(page, 1, "visible")]
    assert hidden == [group == "0" for group in traces(page, 1, "legendgroup")], "its seeds too"


def test_cost_and_metric_are_chosen_from_menus(page: Any) -> None:
    before = traces(page, 0, "x")
    choose(page, 0, "milliseconds a step")
    until(page, lambda: traces(page, 0, "x") != before)
    times = [x[0] for x in traces(page, 0, "x")]
    assert times == pytest.approx([100, 100, 110, 110, 105, 105, 100, 100, 110, 110]), "each row its own"
    choose(page, 1, "train/loss")
    until(page, lambda: traces(page, 1, "x")[0][:2] == [10, 20])


def test_classes_are_sorted_too_and_pictures_are_there(page: Any) -> None:
    def classes() -> list[str]:
        return [line.text for line in find_all(page, "#classes tbody th")]

    assert classes() == list(CLASSES)
    header = find_all(page, "#classes thead th")[1]
    for expected in (list(CLASSES), list(CLASSES)[::-1]):
        click(page, header)
        assert classes() == expected
    click(page, find_all(page, "#classes thead th")[0])
    assert classes()[0] == "</script><b>", "by name"
    widths = page.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert widths == [760] * 4


def test_what_runs_say_is_shown_as_text(page: Any) -> None:
    charts = len(find_all(page, ".chart"))
    assert page.execute_script("return document.scripts.length") == charts + 2
    assert HOSTILE in page.find_element("css selector", "#not-counted").text
    assert any(HOSTILE in label for label in rows_of(page))
    drawn = page.execute_script(
        "return [...document.querySelectorAll('.chart text')].map(t => t.textContent)"
    )
    assert any(HOSTILE in text for text in drawn), "in a legend"


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    wide, screen = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen


def choose(page: Any, chart: int, option: str) -> None:
    """Choose an option of the first menu of a chart."""
    node = find_all(page, ".chart")[chart]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.find_element("css selector", ".updatemenu-header").click()
    until(page, lambda: node.find_elements("css selector", ".updatemenu-dropdown-button"))
    (button,) = [
        b for b in node.find_elements("css selector", ".updatemenu-dropdown-button") if b.text == option
    ]
    button.click()


def until(page: Any, condition: Callable[[], object]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda _: condition())
