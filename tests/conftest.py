"""Settings of the tests, and the browser that some of them share."""

import os
import shutil

import pytest
import torch
from hypothesis import settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Property tests: a few examples each, and no limit on the time that one takes.
settings.register_profile("course", max_examples=25, deadline=None)
settings.load_profile("course")

# Every seed is kept, with the call stack, for each kind of accelerator that may still appear: a
# third of the time of a short test. Where there is none, there is nothing to seed.
if not torch.accelerator.is_available():
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        kind.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def same_random_numbers():
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser():
    """A Chromium or Chrome without a window; where there is none, its tests are skipped."""
    from playwright.sync_api import sync_playwright  # only these tests need it

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        message = f"no browser: install one of {', '.join(BROWSERS)} to run the browser tests"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # Root, in a container, cannot have Chromium's own sandbox.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()
