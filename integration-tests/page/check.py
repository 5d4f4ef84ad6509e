#!/usr/bin/python3
"""Checks pages of stores in headless Chromium: check.py PAGE…

The stores are those of make_store.py. Each page is opened wide, wide in the dark, and narrow. Writes a
screenshot of each beside the page.
"""

import json
import os
import re
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

VIEWS = {"wide": (1600, "light"), "dark": (1600, "dark"), "narrow": (360, "light")}
# Ends a wait that has failed.
FOR_EVER = 60


def start():
    options = webdriver.ChromeOptions()
    options.add_argument("--headless=new")
    # A container has little room in /dev/shm.
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        # Chromium refuses to run as root with its sandbox.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(service=Service("chromedriver"), options=options)


def equal(found, expected, what):
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


class Page:
    """A page that is open in the browser, with the data that it embeds."""

    def __init__(self, browser, path, view):
        self.browser = browser
        self.width, scheme = VIEWS[view]
        # The requests of the former page.
        browser.get_log("performance")
        self.resize(900)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.url = path.resolve().as_uri()
        browser.get(self.url)
        self.data = json.loads(re.search('<script id="store" type="application/json">(.*)</script>', path.read_text())[1])
        self.layers = self.data["layers"]

    def resize(self, height):
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, what):
        WebDriverWait(self.browser, FOR_EVER, 0.02).until(lambda _: condition(), what)

    def screenshot(self, path):
        self.resize(self.script("return document.documentElement.scrollHeight"))
        # The canvases are drawn in the next frame, and shown in the one after it.
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.browser.save_screenshot(str(path))
        self.resize(900)


def has_failed(layer):
    return "exit" in layer and (layer["exit"] != 0 or "failed_by" in layer)


def check_safety(page):
    """Nothing of a layer is markup, and the page loads nothing."""
    assert page.browser.title.startswith("Layers of "), page.browser.title
    equal(len(page.all("img, iframe, link, object")), 0, "foreign elements")
    equal(len(page.all("script")), 2, "scripts")
    requests = page.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    equal(requests, [], "resources")
    for entry in page.browser.get_log("performance"):
        if '"Network.requestWillBeSent"' in entry["message"]:
            assert page.url in entry["message"], entry["message"]


def check_index(page):
    total = len(page.layers)
    table, region = page.one("#index table"), page.one("#index .rows")
    found = page.one("#index output")
    names = lambda: page.script("return [...document.querySelectorAll('#index tbody th')].map(cell => cell.textContent)")
    rows = lambda: int(table.get_attribute("aria-rowcount")) - 1
    equal(rows(), total, "rows")
    equal(names(), [layer["name"] for layer in page.layers][: len(names())], "names")
    assert len(page.all("#index tbody tr")) < 120, "all rows are in the document"

    page.script("arguments[0].scrollTop = 1e9", region)
    last = page.layers[-1]["name"]
    page.until(lambda: names()[-1] == last, "the last row after scrolling")
    page.script("arguments[0].scrollTop = 0", region)
    page.until(lambda: names()[0] == page.layers[0]["name"], "the first row after scrolling back")

    field = page.one("#index input")
    field.send_keys("PACKAGE-9")
    text = lambda layer: "\n".join(layer.get(key, "") for key in ("name", "command", "failed_by", "error")).lower()
    expected = sum("package-9" in text(layer) for layer in page.layers)
    equal((rows(), found.text), (expected, f"{expected:,} of {total:,} layers"), "the filter")
    field.clear()
    field.send_keys(Keys.SPACE, Keys.BACKSPACE)
    status = Select(page.one("#index select"))
    for kind, count in [
        ("failed", sum(map(has_failed, page.layers))),
        ("unreadable", 1),
        ("all", total),
    ]:
        status.select_by_visible_text(kind)
        equal(rows(), count, kind)
    status.select_by_visible_text("unreadable")
    equal(names(), ["invalid"], "the unreadable layer")
    assert "cannot parse" in page.one("#index tbody").get_attribute("textContent"), "no error for the unreadable layer"
    status.select_by_visible_text("all")

    header = page.one("#index thead th:nth-child(3)")
    for direction, pick in [("descending", max), ("ascending", min)]:
        header.find_element(By.TAG_NAME, "button").click()
        equal(header.get_attribute("aria-sort"), direction, "the order")
        best = pick(layer.get("bytes", -1) for layer in page.layers)
        first = names()[0]
        shown = next(layer for layer in page.layers if layer["name"] == first)
        equal(shown.get("bytes", -1), best, f"the first size, {direction}")
    page.one("#index thead button").click()


def check_dialog(page, name):
    page.until(lambda: page.one("dialog").is_displayed(), "the dialog")
    equal(page.one("#details-title").text, name, "the title of the dialog")
    page.one("dialog > button").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.one("dialog").is_displayed(), "the end of the dialog")


def colours(page, canvas):
    return page.script(
        "const { data } = arguments[0].getContext('2d').getImageData(0, 0, arguments[0].width, arguments[0].height);"
        "return new Set(new Uint32Array(data.buffer)).size",
        canvas,
    )


def check_drawings(page):
    for canvas, least in [("#timeline canvas", 5), ("#sizes canvas", 3)]:
        page.script("arguments[0].scrollIntoView()", page.one(canvas))
        page.until(lambda: colours(page, page.one(canvas)) >= least, f"a drawn {canvas}")


def check_timeline(page):
    runs = [layer for layer in page.layers if "run" in layer]
    canvas, readout = page.one("#timeline canvas"), page.one("#timeline output")
    choice = Select(page.one("#timeline select"))
    shown = 0
    for option in choice.options:
        choice.select_by_value(option.get_attribute("value"))
        words = canvas.get_attribute("aria-label").split()
        assert words[:2] == ["Timeline", "of"] and words[3].startswith("run"), words
        shown += int(words[2].replace(",", ""))
    equal(shown, len(runs), "bars")

    batch = page.data["batches"][-1]
    first = min((layer for layer in runs if layer["run"]["start"] >= batch["start"]), key=lambda layer: layer["run"]["start"])
    canvas.send_keys(Keys.HOME)
    assert first["name"] in readout.text and "runc_run" in readout.text, readout.text
    canvas.send_keys(Keys.ENTER)
    check_dialog(page, first["name"])

    # The pointer finds the bar that the keyboard has found.
    canvas.send_keys(Keys.HOME)
    text = readout.text
    canvas.send_keys(Keys.ESCAPE)
    equal(readout.text, "", "the text after Escape")
    page.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    size = canvas.size
    # As in timeline.js.
    lane_height = max(6, min(22, (420 - 24) // batch["lanes"]))
    down = 24 + first["run"]["lane"] * lane_height + lane_height // 2
    for right in (5, 6, 8, 12):
        mouse = ActionChains(page.browser)
        mouse.move_to_element_with_offset(canvas, right - size["width"] // 2, down - size["height"] // 2).perform()
        if readout.text:
            break
    assert "took" in readout.text and "took" in text, (readout.text, text)

    scroller = page.one("#timeline .scroller")
    width = page.script("return arguments[0].scrollWidth", scroller)
    page.all("#timeline .controls button")[1].click()
    zoomed = page.script("return arguments[0].scrollWidth", scroller)
    assert abs(zoomed - 2 * width) <= 2, (width, zoomed)
    page.all("#timeline .controls button")[2].click()
    equal(page.script("return arguments[0].scrollWidth", scroller), width, "the width after Fit")


def item_of(page, container, name):
    """Returns the item of a layer, and shows more items until it is there."""
    find = (
        "return [...arguments[0].querySelector('ul').children]"
        ".find(item => item.querySelector(':scope > .layer')?.textContent === arguments[1])"
    )
    while True:
        item = page.script(find, container, name)
        if item:
            return item
        page.script("arguments[0].querySelector(':scope > ul > li:last-child > button:not(.twist):not(.layer)').click()", container)


def open_at(page, layer, way):
    """Opens the tree on a way from the base to a layer. `way` picks one of several parents."""
    chain = [layer]
    while chain[0]["parents"]:
        parents = chain[0]["parents"]
        chain.insert(0, page.layers[parents[way] if chain[0] is layer else parents[0]])
    base = page.data["bases"][chain[0]["base"]]
    item = next(item for item in page.all("#tree > .tree > li") if item.find_element(By.TAG_NAME, "strong").text == f"base {base}")
    for step in chain:
        twist = item.find_element(By.CSS_SELECTOR, ":scope > .twist")
        if twist.get_attribute("aria-expanded") == "false":
            page.script("arguments[0].click()", twist)
        item = item_of(page, item, step["name"])
    return item.find_element(By.CSS_SELECTOR, ":scope > .twist")


def check_tree(page):
    parents = {parent for layer in page.layers for parent in layer["parents"]}
    # A parent of other layers that has several parents, each of them directly on the base.
    simple = lambda index: len(page.layers[index]["parents"]) == 0
    diamond = next(
        layer
        for index, layer in enumerate(page.layers)
        if index in parents and len(layer["parents"]) > 1 and all(map(simple, layer["parents"]))
    )
    one = open_at(page, diamond, 0)
    page.script("arguments[0].click()", one)
    equal(one.get_attribute("aria-expanded"), "true", "the first place of the layer")
    index = page.layers.index(diamond)
    children = sum(index in layer["parents"] for layer in page.layers)
    shown = one.find_elements(By.XPATH, "../ul/li[button[contains(@class, 'layer')]]")
    equal(len(shown), min(children, 100), "the items of the layer")
    other = open_at(page, diamond, 1)
    page.script("arguments[0].click()", other)
    equal(other.get_attribute("aria-expanded"), "false", "the second place of the layer")
    assert "open here already" in page.one("#tree output").text
    equal(page.script("return document.activeElement"), one, "the focus")
    one.send_keys(Keys.ARROW_LEFT)
    equal(one.get_attribute("aria-expanded"), "false", "the first place, closed")


def check_sizes(page):
    sized = [layer for layer in page.layers if layer.get("bytes")]
    canvas = page.one("#sizes canvas")
    equal(canvas.get_attribute("aria-label"), f"Map of the sizes of {len(sized):,} layers", "cells")
    canvas.send_keys(Keys.HOME)
    largest = max(sized, key=lambda layer: layer["bytes"])
    assert page.one("#sizes output").text.startswith(largest["name"]), page.one("#sizes output").text
    canvas.send_keys(Keys.ENTER)
    check_dialog(page, largest["name"])


def check_width(page):
    wide = page.script("return document.documentElement.scrollWidth")
    assert wide <= page.width, f"the page is {wide} pixels wide, in a window of {page.width}"


EVERYTHING = (check_drawings, check_index, check_timeline, check_tree, check_sizes, check_width, check_safety)
# In the dark, only the colours differ.
CHECKS = {"wide": EVERYTHING, "dark": (check_drawings, check_safety), "narrow": EVERYTHING}


def main(paths):
    browser = start()
    try:
        for path in map(Path, paths):
            for view in VIEWS:
                page = Page(browser, path, view)
                milliseconds = page.script("return performance.timing.domInteractive - performance.timing.navigationStart")
                page.screenshot(path.with_name(f"{path.stem}-{view}.png"))
                for check in CHECKS[view]:
                    check(page)
                equal(browser.get_log("browser"), [], "messages on the console")
                print(f"{path.name}, {view}: {len(page.layers):,} layers, interactive after {milliseconds} ms")
    finally:
        browser.quit()


if __name__ == "__main__":
    main(sys.argv[1:])
