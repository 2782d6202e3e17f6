"""One server and one Chromium for all browser tests; every test has the tab of a user who has never been there."""

import re

import pytest
from sana_native.tests.browser.places import SCREENSHOTS
from sana_native.tools.browser import Tab, open_chromium


@pytest.fixture(scope="session")
def chromium():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def open_tab(chromium, web_server, request):
    """A factory of tabs; each is photographed at the test's end, passed or failed, into output/browser."""
    tabs = []

    def open_one(**options) -> Tab:
        tabs.append(Tab(chromium, web_server.url, **options))
        return tabs[-1]

    yield open_one
    name = re.sub(r"\W+", "_", request.node.name).strip("_")
    for number, tab in enumerate(tabs):
        tab.screenshot(SCREENSHOTS / (f"{name}.png" if len(tabs) == 1 else f"{name}_{number + 1}.png"))
        tab.close()


@pytest.fixture
def tab(open_tab):
    """A tab with an empty canvas, in English."""
    return open_tab().close_templates()
