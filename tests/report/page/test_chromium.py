"""The page in headless Chromium: no request, no error, keyboard, contrast, width, print. With -m long.

    DPTRAIN_SCREENSHOTS=FOLDER DPTRAIN_REPORT=RUN/report.html pytest -m long tests/report/page/test_chromium.py

checks this page instead of a generated one, and writes screenshots of its beginning at two widths, light and dark.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser, browser, find_chromium
from data_sets import image_data
from training_runs import configuration

from data_prep.pack import pack
from dptrain.parallel.communicator import Communicator
from dptrain.report.html import HtmlPage
from dptrain.report.jsonl import JsonLines
from dptrain.report.page.write import write_comparison
from dptrain.training.loop import train

pytestmark = pytest.mark.long
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
SHOWN = 2100  # pixels of the height of a screenshot
HOSTILE = (
    "<script>document.title = 'hostile'</script>",
    "<img src=http://evil.example/x onerror=alert(1)>",
    "c",
    "d",
    "e",
)

# The text of each element against the color behind it: the lowest contrast by WCAG 2.2, with the text.
CONTRAST = """
(() => {
  const channel = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = (node) => {
    if (!node) return [255, 255, 255];
    return over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement));
  };
  let worst = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || !node.getClientRects().length || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const back = behind(node);
    const pair = [light(over(parse(getComputedStyle(node).color), back)), light(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.textContent.slice(0, 60)];
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The page that the user names; else one of a run with hostile names, and one that compares two runs."""
    if named := os.environ.get("DPTRAIN_REPORT"):
        return [Path(named)]
    folder = tmp_path_factory.mktemp("chromium")
    pack(folder / "set", replace(image_data(classes=5, shape=(3, 8, 8)), classes=HOSTILE), shards=4)
    for name in ("one", "two"):
        config = configuration(folder / "set", folder / name, report=True, epochs=4)
        with closing(JsonLines()) as log, closing(HtmlPage()) as page:
            train(config, Communicator(), [log, page])
    return [folder / "one" / "report.html", write_comparison([folder / "one", folder / "two"], folder / "c.html")]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here; install one, for example: apt install chromium")
    with browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_whole_readable_and_silent(width: str, dark: bool, pages: list[Path], chromium: Browser) -> None:
    for page in pages:
        chromium.events.clear()
        size = WIDTHS[width]
        chromium.open(page, width=size[0], height=size[1], dark=dark, mobile=width == "phone")
        chromium.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert chromium.value("document.documentElement.scrollWidth") <= size[0]
        contrast, text = chromium.value(CONTRAST)
        assert contrast >= 4.5, text
        assert chromium.value("document.title") != "hostile"
        requests = [values["request"]["url"] for name, values in chromium.events if name == "Network.requestWillBeSent"]
        assert {url for url in requests if not url.startswith("data:")} == {page.resolve().as_uri()}
        assert [name for name, _ in chromium.events if name != "Network.requestWillBeSent"] == []
        if folder := os.environ.get("DPTRAIN_SCREENSHOTS"):
            chromium.value("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
            name = f"report-{width}-{'dark' if dark else 'light'}.png"
            (Path(folder) / name).write_bytes(chromium.screenshot(size[0], SHOWN))


def test_everything_is_reached_and_used_with_the_keyboard(pages: list[Path], chromium: Browser) -> None:
    chromium.open(pages[0], width=1280, height=900)
    reached = []
    for _ in range(40):
        chromium.press("Tab")
        reached.append(chromium.value("document.activeElement.className || document.activeElement.tagName"))
        outline = chromium.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached[-1]
        if reached[-1] == "plot":
            break
    assert reached[0] == "skip"
    assert chromium.value("document.querySelectorAll('.tip').length") == 1
    before = chromium.value("document.activeElement.getAttribute('aria-valuetext')")
    chromium.press("ArrowLeft")
    after = chromium.value("document.activeElement.getAttribute('aria-valuetext')")
    assert before.startswith("epoch ")
    assert after.startswith("epoch ")
    assert after != before
    chromium.press("Home")
    assert chromium.value("document.activeElement.getAttribute('aria-valuenow')") == "0"
    assert chromium.value("document.querySelector('.tip').textContent").startswith("epoch 1, step ")
    chromium.press("Escape")
    assert chromium.value("document.querySelectorAll('.tip, .mark, .cursor').length") == 0
    chromium.value("document.querySelector('summary').focus()")
    chromium.press("Enter")
    assert chromium.value("document.querySelector('details').open") is True


def test_a_pointer_over_a_curve_shows_the_values_at_that_epoch(pages: list[Path], chromium: Browser) -> None:
    chromium.open(pages[0], width=1280, height=900)
    box = chromium.value("(() => { const b = document.querySelector('.plot').getBoundingClientRect(); "
                         "return [b.left, b.top, b.width, b.height]; })()")  # fmt: skip
    data = chromium.value("JSON.parse(document.querySelector('.plot script').textContent)")
    test = next(one for one in data["curves"] if one["name"] == "test")
    first, last = data["range"][:2]
    x = box[0] + box[2] * (test["x"][1] - first) / (last - first)
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=box[1] + box[3] / 2)
    text = chromium.value("document.querySelector('.tip').innerText")
    assert text.startswith("epoch 2, step ")
    assert f"test\n{test['y'][1]:.4f}" in text.replace("\n\n", "\n")
    inside = chromium.value("(() => { const b = document.querySelector('.tip').getBoundingClientRect(); "
                            "return b.left >= 0 && b.right <= innerWidth; })()")  # fmt: skip
    assert inside


def test_print_is_light_and_shows_everything(pages: list[Path], chromium: Browser) -> None:
    chromium.open(pages[0], width=1280, height=900, dark=True)
    chromium.value("dispatchEvent(new Event('beforeprint'))")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.value("[...document.querySelectorAll('details')].every((one) => one.open)") is True
    assert chromium.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    pdf = chromium.call("Page.printToPDF")["data"]
    assert len(pdf) > 10_000
    chromium.call("Emulation.setEmulatedMedia", media="")
