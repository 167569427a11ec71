# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML page, in Debian's Chromium: it opens from disk, searches, sorts, leads to blocks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bt.cli import main as cli
from bt.errors import InputError
from bt.inspect import page
from bt.record.reader import Block, Exits, Recording, Site
from translator.sensitive import BY_NAME

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser_needed = pytest.mark.skipif(not (CHROMIUM and DRIVER),
                                    reason="needs Debian's chromium and chromium-driver")
#: What a guest might call a symbol to get at the reader.
EVIL = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", "--disable-quic", "--disable-dev-shm-usage",
                 f"--user-data-dir={profile}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(DRIVER or ""))
    driver.set_window_size(1280, 860)
    yield driver
    driver.quit()


def open_page(browser: Any, path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("about:blank")
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.body.dataset.ready"))


def ask(browser: Any, script: str) -> Any:
    return browser.execute_script(script)


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda b: b.execute_script(f"return {condition}"))


@pytest.fixture(scope="module")
def tasks_page(tasks: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "tasks.html"
    page.write(tasks, path)
    return path


def many(count: int) -> Recording:
    """A recording of ``count`` blocks, one of them with a trap that was hit."""
    blocks = [Block(0xFFFFFFFF81000000 + 16 * i, 0x1000000 + 16 * i, 64, True,
                    b"\xfa\x48\x89\xc5\xc3", i, i, 1) for i in range(count)]
    site = Site(blocks[7].gva, 64, BY_NAME["CLI"].id, b"\xfa", 0)
    return Recording(
        {"guest": EVIL, "engine": "bt", "outcome": "powered-off", "status": "0", "wall_s": "1"},
        blocks, {site.gva: site}, [Exits(site.gva, "CLI", "control", 12, 3400)],
        {"CLI": "control"}, [(10_000_000, "CLI", 12)], [(0x1000, 1, 0, 5)], [],
        [(0xFFFFFFFF81000000, 16 * count, EVIL)])


def test_the_page_is_alone(tasks_page: Path) -> None:
    """No address of anything outside it, but the name space that SVG and HTML need."""
    text = tasks_page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']*["']""", text)
    assert "https:" not in text and "@import" not in text and "url(" not in text


@browser_needed
def test_it_opens_searches_sorts_and_follows(browser: Any, tasks_page: Path,
                                             tasks: Recording) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, tasks_page)
    rows = browser.find_elements(By.CSS_SELECTOR, "#hot tbody tr")
    assert len(rows) == min(500, len([e for e in tasks.exits if e.gva]))
    # From an exit to its block.
    link = rows[0].find_element(By.TAG_NAME, "a")
    address = int(link.text, 16)
    link.click()
    wait(browser, "!document.getElementById('blocks').hidden")
    text = browser.find_element(By.ID, "block").text
    assert f"{address:x}" in text and "exits in" in text
    assert browser.find_elements(By.CSS_SELECTOR, "#block tr.changed")
    # Search and sort, by keyboard alone.
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("iretq")
    wait(browser, "/^[1-9]\\d* of/.test(document.getElementById('found').textContent) && "
                  "order.length < blocks.address.length")
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    wait(browser, "document.activeElement.id === 'rows' && selected >= 0")
    assert "iretq" in browser.find_element(By.ID, "block").text
    browser.switch_to.active_element.send_keys("s")
    exits = ask(browser, "return order.map((i) => blocks.exits[i])")
    assert exits == sorted(exits, reverse=True) and exits[0] > 0
    before = ask(browser, "return selected")
    browser.switch_to.active_element.send_keys("j")
    if len(exits) > 1:
        assert ask(browser, "return selected") != before
    for view, check in (("3", "time"), ("4", "pages"), ("1", "overview")):
        browser.find_element(By.TAG_NAME, "body").send_keys(view)
        wait(browser, f"!document.getElementById('{check}').hidden")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@browser_needed
def test_both_schemes_and_a_phone(browser: Any, tasks_page: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, tasks_page)
    first = ask(browser, "return getComputedStyle(document.body).backgroundColor")
    browser.find_element(By.TAG_NAME, "body").send_keys("t")
    assert ask(browser, "return getComputedStyle(document.body).backgroundColor") != first
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        for view in ("overview", "blocks", "time", "pages"):
            ask(browser, f"location.hash = '#{view}'")
            wait(browser, f"!document.getElementById('{view}').hidden")
            assert ask(browser, "return document.documentElement.scrollWidth") <= 390, view
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@browser_needed
def test_a_hundred_thousand_blocks_and_hostile_names(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    path = tmp_path / "many.html"
    page.write(many(100_000), path)
    open_page(browser, path)
    ask(browser, "location.hash = '#blocks'")
    wait(browser, "drawn.size > 0")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".row")) < 100
    ask(browser, "document.getElementById('rows').scrollTop = 1e9")
    wait(browser, "drawn.has(99999)")
    browser.find_element(By.ID, "which").send_keys("rewritten")
    wait(browser, "order.length === 1")
    browser.find_element(By.CSS_SELECTOR, ".row").click()
    text = browser.find_element(By.ID, "block").text
    assert EVIL in text and "int3" in text and "12×" in text
    assert ask(browser, "return document.title") != "owned"


def test_comparison_charts(tasks: Recording, tmp_path: Path) -> None:
    good = tmp_path / "c.json"
    good.write_text(json.dumps({
        "workload": "boot", "what": "<boot>", "native": None, "runs": 1, "machine": {},
        "engines": {"bt": {"ns": {}, "wall_s": 1.5, "guest_s": None}}}))
    path = tmp_path / "p.html"
    page.write(tasks, path, good)
    text = path.read_text(encoding="utf-8")
    assert 'id="engines"' in text and "<svg" in text and "<boot>" not in text
    for content in ("", "{}", "[1]", "{\"engines\": 3}"):
        good.write_text(content)
        with pytest.raises(InputError, match="is not what"):
            page.write(tasks, path, good)
    with pytest.raises(InputError, match="cannot read"):
        page.write(tasks, path, tmp_path / "none")


def test_the_command_writes_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hello.html"
    assert cli.main(["inspect", "hello", "--html", str(path)]) == 0
    assert capfd.readouterr().err.endswith(f"bt: wrote {path}\n")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
