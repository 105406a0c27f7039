"""The page in Chromium, from a file: both sizes, both themes, hostile data; and its contrasts."""

import re
import shutil
from pathlib import Path

import pytest
from report_releases import make_hostile, make_release

import starpo_train.report
from starpo_train.report import render_report
from starpo_train.report.page import SECTIONS

SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
STYLE = Path(starpo_train.report.__file__).parent / "templates" / "style.css"


@pytest.fixture(scope="module")
def browser():
    """Chromium, or a skip that names what is absent."""
    pytest.importorskip("selenium", reason="the package selenium is absent")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        absent = "chromium" if program is None else "chromedriver"
        pytest.skip(f"the program {absent} is absent: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page")
    return render_report(output=path / "page.html", **make_release(path)).as_uri()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("hostile")
    return render_report(output=path / "page.html", **make_hostile(path)).as_uri()


def visit(browser, address: str, *, size: str, theme: str) -> None:
    """Open an address afresh as a device would, everything that is folded unfolded."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    for name in ("browser", "performance"):
        browser.get_log(name)
    browser.get(address)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")


def list_requests(browser) -> list[str]:
    """Addresses that were asked for since the last visit began."""
    events = [entry["message"] for entry in browser.get_log("performance")]
    found = [re.search(r'"Network.requestWillBeSent".*?"url":"([^"]*)"', event) for event in events]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["page", "hostile"])
def test_page_in_a_browser(browser, request, which, size, theme):
    """Nothing wider than the window, nothing fetched, nothing complained of, sections in order."""
    address = request.getfixturevalue(which)
    visit(browser, address, size=size, theme=theme)
    width = SIZES[size][0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # wide tables scroll in boxes of their own; a page that hides its overflow would pass, too
    wide = browser.execute_script(
        """return [...document.querySelectorAll('main *')].filter((e) =>
             !e.closest('.heat-box, .scroll, svg') && e.getBoundingClientRect().right > arguments[0] + 1
           ).map((e) => e.outerHTML.slice(0, 200))""",
        width,
    )
    assert wide == []
    sections = browser.execute_script(
        """return [...document.querySelectorAll('section')].map(
             (e) => [e.id, e.getBoundingClientRect().top, e.getBoundingClientRect().height])"""
    )
    names = [name for name, _, _ in sections]
    assert names == [key for key in SECTIONS if key in names]
    assert len(names) >= len(SECTIONS) - 1
    tops = [top for _, top, _ in sections]
    assert tops == sorted(tops)
    assert min(height for _, _, height in sections) > 60
    shown = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert shown == {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 20, 26)"}[theme]
    assert browser.get_log("browser") == []
    assert list_requests(browser) == [address]


def test_hostile_content_opens_no_dialog(browser, hostile):
    """Pointed at, focused and clicked all over: no dialog, no script, no element of its own."""
    from selenium.common.exceptions import NoAlertPresentException

    visit(browser, hostile, size="laptop", theme="light")
    browser.execute_script(
        """for (const e of document.querySelectorAll('*'))
             for (const name of ['mouseover', 'mouseenter', 'focus', 'click', 'error', 'load', 'toggle'])
               if (e.tagName !== 'A' && e.tagName !== 'SUMMARY') e.dispatchEvent(new Event(name))"""
    )
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.accept()
    assert browser.execute_script("return document.scripts.length + document.images.length") == 0
    links = browser.execute_script("return [...document.links].map((a) => a.protocol + a.host)")
    assert set(links) == {"file:", "https:x.example"}


def test_page_forbids_what_a_script_would_do(browser, page):
    """The page's policy stops a script and an image that somebody put in."""
    visit(browser, page, size="laptop", theme="light")
    browser.execute_script(
        """const s = document.createElement('script'); s.textContent = 'window.ran = 1';
           const i = document.createElement('img'); i.src = 'http://127.0.0.1:9/x.png';
           document.body.append(s, i)"""
    )
    assert browser.execute_script("return window.ran || 0") == 0
    complaints = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert complaints.count("Content Security Policy") >= 2


def test_contents_lead_to_sections_on_a_laptop_and_are_left_out_on_a_phone(browser, page):
    """A link of the contents brings its section to the top."""
    visit(browser, page, size="laptop", theme="light")
    browser.find_element("css selector", ".contents a[href='#credit']").click()
    top = browser.execute_script(
        "return document.getElementById('credit').getBoundingClientRect().top"
    )
    assert 0 <= top < 60
    visit(browser, page, size="phone", theme="light")
    assert not browser.find_element("css selector", ".contents").is_displayed()


# Contrast -----------------------------------------------------------------------------------------


def read_themes() -> dict[str, dict[str, str]]:
    """Colours of the style sheet by theme and variable."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    return {
        theme: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for theme, block in (("light", light), ("dark", dark))
    }


def find_contrast(first: str, second: str) -> float:
    """WCAG 2: (L1 + .05) / (L2 + .05) of the relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_formula_by_known_pairs():
    """Black on white is 21; #777777 on white is just below 4.5."""
    assert find_contrast("#000000", "#ffffff") == pytest.approx(21)
    assert find_contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_aa(theme):
    """4.5 for every colour that text has, on every ground it stands on, in both themes."""
    colours = read_themes()[theme]
    roles = ("candidate", "baseline", "evidence", "pass", "fail", "unclear")
    pairs = [(text, ground) for text in ("ink", "soft", *roles) for ground in ("page", "card")]
    pairs += [(text, "fill") for text in ("ink", "soft")]
    grounds = ("pass-fill", "fail-fill", "unclear-fill", "none-fill")
    pairs += [(text, ground) for text in ("ink", "soft") for ground in grounds]
    # chips of the checks stand on the banner
    tones = ("pass", "fail", "unclear", "baseline", "candidate")
    pairs += [(text, ground) for text in tones for ground in grounds]
    heat = [f"heat-{level}" for level in ("n4", "n3", "n2", "n1", "z", "p1", "p2", "p3", "p4")]
    pairs += [("ink", level) for level in heat]
    low = {pair: find_contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert {pair: round(ratio, 2) for pair, ratio in low.items() if ratio < 4.5} == {}
    # graphics need 3
    assert find_contrast(colours["train"], colours["card"]) >= 3
