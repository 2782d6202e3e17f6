"""A prompt file in the browser: one press of Run makes an image of every line, and another press none."""

import pytest
from sana_native.tests.browser.places import PACK

pytestmark = pytest.mark.browser

LINES = "(count) => seen.events.filter((event) => event.kind === 'execution_success').length >= count"


def test_one_press_runs_every_line_and_another_none(tab):
    tab.open_template(PACK, "demo_prompt_file")
    tab.set_widget("SanaNativeSaveNamed", "folder", "browser")
    tab.set_widget("SanaNativePromptsFromFile", "steps", 2)
    tab.fit()
    tab.press_run()
    tab.wait_for(LINES, 6, seconds=300)
    images = [image for event in tab.events("executed") for image in (event["output"] or {}).get("images", [])]
    assert [image["filename"] for image in images] == [f"{index:09}.png" for index in range(6)]
    sizes = tab.node_image(tab.node_id("SanaNativeSaveNamed"))
    assert (sizes["width"], sizes["height"]) == (256, 256)
    tab.press_run()
    tab.wait_for(LINES, 1, seconds=60)
    tab.page.wait_for_timeout(500)
    assert len(tab.events("execution_success")) == 1 and not tab.events("execution_error")
    assert not [event for event in tab.events("executed") if (event["output"] or {}).get("images")]
