"""The Space and the page of a generation in headless Chromium, with a tiny model. Pictures go to .cache/nightly.

It needs Debian's packages chromium and chromium-driver. The browser can reach nothing but this machine.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from published import randomised, tiny_config, tiny_denoiser
from python_path import python_path
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.visualization import generation_html

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / ".cache" / "nightly"
LENGTH = 96
TOKENIZER = text8_tokenizer(LENGTH)


@pytest.fixture(scope="module")
def model():
    sizes = {"vocab_size": len(TOKENIZER), "model_length": LENGTH}
    return EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(**sizes), randomised(EDLMEnergyModel(tiny_config(**sizes)))
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or its driver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium

    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1100,1500",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")

    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    PICTURES.mkdir(parents=True, exist_ok=True)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    """Of the running Space."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    here = {
        "EDLM_MODEL": str(folder),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    here |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path()}
    with open(folder / "log", "w") as log:
        command = [sys.executable, ROOT / "space" / "app.py"]
        space = subprocess.Popen(command, env=os.environ | here, stdout=log, stderr=log)

    try:
        wait_for(f"http://127.0.0.1:{port}/", space, folder / "log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        space.terminate()
        space.wait(30)


def wait_for(address, process, log, seconds=180):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"The Space did not start:\n{log.read_text()}")


def wait(browser, condition, seconds=120):
    return WebDriverWait(browser, seconds).until(condition)


def button(browser, label):
    path = f"//button[contains(@class, 'primary')][normalize-space()='{label}']"
    return wait(browser, lambda b: b.find_element(By.XPATH, path))


def texts_of(browser, label):
    """The texts in a field of the Space, one after the other, until the picture of the steps is there."""
    field = browser.find_element(By.XPATH, f"//label[.//*[normalize-space()='{label}']]//textarea")
    texts = []

    def is_whole(browser):
        frames = browser.find_elements(By.CLASS_NAME, "steps")
        texts.append(field.get_property("value"))
        return any(frame.is_displayed() for frame in frames)

    WebDriverWait(browser, 120, poll_frequency=0.02).until(is_whole)
    return [*texts, field.get_property("value")]


def open_tab(browser, name):
    path = f"//button[@role='tab' and normalize-space()='{name}']"
    wait(browser, lambda b: b.find_element(By.XPATH, path)).click()


def step_through(browser, last):
    """Use the page of a generation from the keyboard: at both ends, and at a step with candidates of the first row."""
    slider = browser.find_element(By.ID, "step")
    place, text = browser.find_element(By.TAG_NAME, "output"), browser.find_element(By.CLASS_NAME, "text")
    slider.send_keys(Keys.END)
    assert place.text == f"step {last} of {last}" and "░" not in text.text

    slider.send_keys(Keys.HOME)
    assert place.text == f"step 0 of {last}" and "░" in text.text
    assert "Before the first step" in browser.find_element(By.CLASS_NAME, "weighing").text

    for step in range(1, last + 1):
        slider.send_keys(Keys.ARROW_RIGHT)
        assert slider.get_attribute("aria-valuetext") == place.text == f"step {step} of {last}"
        taken = browser.find_element(By.TAG_NAME, "section").find_elements(By.CLASS_NAME, "taken")
        if step >= last // 2 and taken:
            break

    assert len(taken) == 1 and "✓ taken" in taken[0].text
    assert "effective sample size" in browser.find_element(By.TAG_NAME, "caption").text


def errors(browser):
    """What the browser complained of since it was asked last."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_space_generates_infills_and_shows_the_steps(browser, address):
    browser.get(address)
    button(browser, "Generate").click()
    *drafts, generated = texts_of(browser, "Text")
    assert re.fullmatch("it was a dark and[a-z ]{50,}", generated)
    assert any("░" in draft for draft in drafts)

    wait(browser, lambda b: b.find_element(By.CLASS_NAME, "steps"))
    browser.switch_to.frame(browser.find_element(By.CLASS_NAME, "steps"))
    step_through(browser, 16)
    browser.switch_to.default_content()
    assert browser.save_screenshot(PICTURES / "space-generate.png")

    open_tab(browser, "Infill")
    fill = button(browser, "Fill")
    wait(browser, lambda b: fill.is_displayed())
    fill.click()
    filled = texts_of(browser, "Filled text")[-1]

    # Up to so many letters: a network that was never trained draws start tokens too.
    assert re.fullmatch("the old house stood at the end of[a-z ]{,3} and nobody lived in it ?", filled)
    assert browser.save_screenshot(PICTURES / "space-infill.png")
    assert not errors(browser)

    gaps = browser.find_element(By.XPATH, "//label[.//*[normalize-space()='Text with gaps']]//textarea")
    gaps.send_keys(Keys.CONTROL, "a")
    gaps.send_keys("the cat")
    fill.click()
    wait(
        browser,
        lambda b: "There is nothing to fill. Put _" in b.find_element(By.TAG_NAME, "body").text,
    )


def test_space_compares_ways_to_sample(browser, address):
    browser.get(address)
    open_tab(browser, "Compare")
    compare = button(browser, "Compare")
    wait(browser, lambda b: compare.is_displayed())
    compare.click()

    def table(browser):
        text = browser.find_element(By.TAG_NAME, "body").text
        seconds = re.findall(r"\b\d+\.\d\d\b", text)
        return len(seconds) == 3 and text

    text = wait(browser, table, 60)
    ways = re.findall("(ancestral|planned|planned, with energy)\nit was a dark and[a-z ]{20,}\n", text)
    assert ways == ["ancestral", "planned", "planned, with energy"]
    assert browser.save_screenshot(PICTURES / "space-compare.png")
    assert not errors(browser)


def test_space_offers_examples(browser, address):
    browser.get(address)
    wait(browser, lambda b: "CHAPTER I" in b.find_element(By.TAG_NAME, "body").text)
    examples = browser.find_elements(By.XPATH, "//*[contains(text(), 'He opened the door')]")
    next(example for example in examples if example.is_displayed()).click()
    field = browser.find_element(By.XPATH, "//label[.//*[contains(text(), 'Prompt (may')]]//textarea")
    wait(browser, lambda b: field.get_property("value") == "He opened the door, and")


def vowels(candidates, noisy, log_probs, attention_mask):
    wanted = torch.tensor(TOKENIZER.convert_tokens_to_ids(list("aeiou")))
    return -torch.isin(candidates, wanted).sum(-1).float()


@pytest.mark.parametrize("scheme, width", [("light", 1100), ("dark", 1100), ("light", 400)])
def test_page_in_light_dark_and_on_a_narrow_screen(model, browser, tmp_path, scheme, width):
    out = model.generate(
        TOKENIZER("the cat", return_tensors="pt").input_ids.repeat(2, 1),
        max_new_tokens=LENGTH - 8,
        max_denoising_steps=12,
        energy=vowels,
        energy_window=0.8,
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
        output_history=True,
    )
    (tmp_path / "page.html").write_text(generation_html(out, TOKENIZER), encoding="utf-8")
    errors(browser)  # of the page before, which was left while it listened
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "page.html").as_uri())
    step_through(browser, 12)
    assert browser.save_screenshot(PICTURES / f"page-{scheme}-{width}.png")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    paper = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert (paper == "rgba(255, 255, 255, 1)") == (scheme == "light")

    browser.find_element(By.TAG_NAME, "button").click()
    assert browser.find_element(By.TAG_NAME, "button").text == "Pause"
    wait(browser, lambda b: b.find_element(By.TAG_NAME, "output").text == "step 12 of 12")
    assert browser.find_element(By.TAG_NAME, "button").text == "Play"

    last = browser.find_elements(By.CLASS_NAME, "weighing")
    # t = 1/12 < 0.2
    assert all("No candidates were weighed in this step." in place.text for place in last)
    assert not errors(browser)
