"""The invented shop as a dataset, and a browser to look with."""

import shutil
from pathlib import Path

import pytest
from look_data import shop_rows, write_dataset


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """The invented shop's dataset."""
    return write_dataset(tmp_path_factory.mktemp("look") / "shop", shop_rows())


@pytest.fixture(scope="session")
def browser():
    """Chromium, or a skip that names what is absent."""
    selenium = pytest.importorskip("selenium", reason="the package selenium is absent")
    del selenium
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        absent = "chromium" if program is None else "chromedriver"
        pytest.skip(f"the program {absent} is absent: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    calm = [{"name": "prefers-reduced-motion", "value": "reduce"}]  # scrolling is done at once
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": calm})
    yield opened
    opened.quit()
