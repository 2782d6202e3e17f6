"""A real Chromium on a running ComfyUI: open its page as a first-time user does, and do there what users do.

Runs inside the host's environment with the extra `browser`. Used by the browser tests and by the screenshots.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .comfy_server import ComfyServer
from .host import front_end_arguments, prepare_base

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The page of a user who has never been here, whatever an earlier tab left on the server; less the map of the graph,
# which takes a machine without a graphics card much time to draw.
FIRST_VISIT = {
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.TutorialCompleted": False,
    "Comfy.Locale": "en",
    "Comfy.Execution.PreviewMethod": "auto",
    "Comfy.RightSidePanel.IsOpen": False,
}
ENDS = ("execution_success", "execution_interrupted", "execution_error")
EVENTS = ("execution_start", "execution_cached", "progress", "executed", *ENDS)
WAIT = 120.0  # seconds for anything on the page: an idle machine needs one or two of them, a busy one many
FIRST_DIALOG, VISITS = 45.0, 3  # seconds for the dialog a newcomer is shown, once the page is there

_READY = "() => window.app?.extensionManager && window.LiteGraph?.registered_node_types.KSampler"
# The page sometimes misses, on a busy machine, the end of the fading of its mask, which then swallows every click.
_NO_STUCK_MASK = """() => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(".p-overlay-mask-leave { display: none !important }");
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}"""
# What the server tells the page, and the previews as it sends them.
_LISTEN = """(kinds) => {
    window.seen = {events: [], previews: []};
    for (const kind of kinds) {
        app.api.addEventListener(kind, (event) => seen.events.push({kind, ...event.detail}));
    }
    app.api.addEventListener("b_preview_with_metadata", (event) => seen.previews.push(event.detail));
}"""
_CARDS = "[data-testid^=template-workflow-]"
CARD_TRIES = 100
_DROP = """([name, content, kind]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: kind}));
    const canvas = app.canvas.canvas, box = canvas.getBoundingClientRect();
    const where = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
    for (const type of ["dragenter", "dragover", "drop"]) {
        canvas.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true, ...where}));
    }
}"""
_PREVIEWS = """async () => Promise.all(seen.previews.map(async ({blob, displayNodeId}) => {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    return [String(displayNodeId), btoa(text)];
}))"""
# Titles lie above a node's position.
_NODE_BOX = """(id) => {
    const node = app.graph.getNodeById(id), canvas = app.canvas.canvas.getBoundingClientRect();
    const [left, top, width, height] = node.getBounding(), scale = app.canvas.ds.scale;
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([left, top]);
    return {x: x + canvas.x, y: y + canvas.y, width: width * scale, height: height * scale};
}"""
_TITLE_POINT = """(id) => {
    const node = app.graph.getNodeById(id), canvas = app.canvas.canvas.getBoundingClientRect();
    const [left, top, width] = node.getBounding(), middle = [left + width / 2, top + LiteGraph.NODE_TITLE_HEIGHT / 2];
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(middle);
    return [x + canvas.x, y + canvas.y];
}"""
_WIDGET_POINT = """([id, name]) => {
    const node = app.graph.getNodeById(id), canvas = app.canvas.canvas.getBoundingClientRect();
    const widget = node.widgets.find((widget) => widget.name === name);
    const inside = [node.pos[0] + node.size[0] / 4, node.pos[1] + widget.last_y + 8];
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(inside);
    return [x + canvas.x, y + canvas.y];
}"""
# The image that a node draws below its widgets.
_NODE_IMAGE = """(id) => {
    const image = app.graph.getNodeById(id).imgs?.[0];
    return image?.complete && image.naturalWidth
        ? {src: image.src, width: image.naturalWidth, height: image.naturalHeight} : null;
}"""


class BrowserError(RuntimeError):
    """There is no browser to drive, or the page did not do what it was asked; the message is one sentence."""


def find_chromium() -> str:
    """Return the browser to drive: what CHROMIUM names, else the first known one on the path.

    Raises: BrowserError with the cure.
    """
    chosen = os.environ.get("CHROMIUM")
    found = shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        wrong = f"CHROMIUM={chosen} is not a program" if chosen else "There is no Chromium on this machine"
        raise BrowserError(f"{wrong}; install the package chromium, or let CHROMIUM name a Chromium or Chrome.")
    return found


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Run a headless Chromium with a fresh profile.  Raises: BrowserError."""
    try:
        from playwright.sync_api import sync_playwright  # an extra: the other tests are collected without it
    except ImportError:
        raise BrowserError("Playwright is not installed; run make test-browser, which installs it.") from None
    program = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serve_fresh(empty_files: Sequence[str] = ()) -> Iterator[ComfyServer]:
    """Run a server with the pack and a user who has never been there, and with these files, empty, in its folders."""
    with tempfile.TemporaryDirectory() as folder:
        base = prepare_base(Path(folder))
        for name in empty_files:
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).touch()
        with ComfyServer(base, front_end_arguments()) as server:
            yield server


class Tab:
    """A tab of a user who has never been here before, on the server at `url`, with the templates' dialog open.

    `errors` collects what the page puts on the console as errors, as (text, address), exceptions included.
    `size` is in CSS pixels, `scale` is device pixels per CSS pixel, `settings` are the host's by their ids. With a
    `template` (folder of a pack, name) it is opened by a link to it instead, without the dialog.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        language: str = "en",
        size: tuple[int, int] = (1600, 900),
        scale: float = 1.0,
        settings: Mapping[str, object] | None = None,
        template: tuple[str, str] | None = None,
    ):
        self._context = None
        self.url, self.errors, self._browser = url, [], browser
        link = "?source={}&template={}".format(*template) if template else ""
        options = {
            "viewport": {"width": size[0], "height": size[1]},
            "device_scale_factor": scale,
            "locale": {"en": "en-US", "zh": "zh-CN"}[language],
        }
        wanted = {**FIRST_VISIT, "Comfy.Locale": language, **(settings or {})}
        # Once in many visits the page does not open the dialog that it opens to newcomers.
        if not any(self._visit(f"{url}/{link}", wanted, options) for _ in range(VISITS)):
            self.close()
            raise BrowserError(f"The page did not open in {VISITS} visits of {WAIT:g} s; see the server's log.")
        self.page.evaluate(_LISTEN, list(EVENTS))

    def _visit(self, address: str, settings: dict, options: dict) -> bool:
        """Open the address with a fresh profile; return whether the templates' dialog, or the linked one, opened."""
        from playwright.sync_api import TimeoutError as TooSlow

        if self._context is not None:
            self._context.close()
        self.errors.clear()
        post_json(f"{self.url}/api/settings", settings)
        self._context = self._browser.new_context(**options)
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT * 1000)
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append((str(error), "")))
        try:
            self.page.goto(address, wait_until="domcontentloaded")
            self.wait_for(_READY)
            self.page.evaluate(_NO_STUCK_MASK)
            if "template=" in address:
                self.wait_for("() => app.graph?.nodes.length")
            else:
                self.templates.wait_for(timeout=FIRST_DIALOG * 1000)
        except TooSlow:
            return False
        return True

    def reload(self) -> None:
        """Load the page again, as F5 does; the open graph stays."""
        self.page.reload(wait_until="domcontentloaded")
        self.wait_for(_READY)
        self.page.evaluate(_NO_STUCK_MASK)
        self.wait_for("() => app.graph?.nodes.length")
        self.page.evaluate(_LISTEN, list(EVENTS))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append((message.text, message.location.get("url", "")))

    def close(self) -> None:
        self._context.close()

    # The page

    @property
    def templates(self) -> Locator:
        """The list in the templates' dialog."""
        return self.page.get_by_test_id("template-workflows-content")

    @property
    def panel(self) -> Locator:
        """The panel on the right: errors, help, parameters."""
        return self.page.get_by_test_id("properties-panel")

    def wait_for(self, script: str, argument: object = None, seconds: float = WAIT) -> object:
        """Wait until a JavaScript function returns something true, and return it."""
        return self.page.wait_for_function(script, arg=argument, timeout=seconds * 1000).json_value()

    def command(self, name: str) -> None:
        """Run a command of the page's by its id, as a key or a menu would; do not wait for its end."""
        self.page.evaluate("(name) => { app.extensionManager.command.execute(name) }", name)

    def search(self, text: str) -> Locator:
        """Double-click the empty canvas and type; return the results, which may still be few."""
        field = self.page.get_by_role("dialog").locator("input").first
        deadline = time.monotonic() + WAIT
        while not field.is_visible() and time.monotonic() < deadline:
            self.page.mouse.dblclick(800, 450)  # lost while a closed dialog's shade is still fading
            self.page.wait_for_timeout(2000)
        field.wait_for()
        self.page.keyboard.type(text)
        return self.page.get_by_test_id("result-item")

    def close_templates(self) -> Tab:
        """Press Escape in the templates' dialog, which leaves an empty canvas."""
        self.page.keyboard.press("Escape")
        self.templates.wait_for(state="detached")
        return self

    def open_templates(self, folder: str) -> None:
        """Open the templates' dialog at those of one pack."""
        if not self.templates.is_visible():
            self.command("Comfy.BrowseTemplates")
            self.templates.wait_for()
        self.page.get_by_role("dialog").get_by_text(folder, exact=True).first.click()
        self.page.locator(_CARDS).first.wait_for()

    def template_card(self, name: str) -> Locator:
        """A template in the open dialog, scrolled to: newer pages make cards only as one scrolls."""
        card, cards = self.page.get_by_test_id(f"template-workflow-{name}"), self.page.locator(_CARDS)
        for _ in range(CARD_TRIES):
            if card.count():
                break
            cards.last.scroll_into_view_if_needed()
            cards.last.hover()  # the wheel turns what the pointer is on, and would turn the list of packs
            self.page.mouse.wheel(0, 300)
            self.page.wait_for_timeout(100)
        card.scroll_into_view_if_needed()
        return card

    def open_template(self, folder: str, name: str) -> None:
        """Open one template of a pack, as a click in the dialog does."""
        self.open_templates(folder)
        self._mark_graph()
        self.template_card(name).click()
        self.templates.wait_for(state="detached")
        self._wait_for_graph()

    def drop(self, name: str, content: bytes, kind: str) -> None:
        """Drop a file of that name and media type on the canvas, and wait until its graph is open."""
        self._mark_graph()
        self.page.evaluate(_DROP, [name, base64.b64encode(content).decode("ascii"), kind])
        self._wait_for_graph()

    def _mark_graph(self) -> None:
        self.page.evaluate("() => { window.nodesBefore = new Set(app.graph.nodes) }")

    def _wait_for_graph(self) -> None:
        self.wait_for("() => app.graph.nodes.length && !app.graph.nodes.some((node) => nodesBefore.has(node))")
        self.settle()

    def settle(self) -> None:
        """Let the canvas draw what has changed: sizes of nodes and places of widgets are known only then."""
        self.page.evaluate(
            "() => new Promise((done) => { app.canvas.setDirty(true, true);"
            " requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))) })"
        )

    def can_draw(self) -> bool:
        """Whether the canvas draws the graph; an error there stops it until the page is loaded again."""
        return self.page.evaluate("() => { try { app.canvas.draw(true, true); return true } catch { return false } }")

    # The graph

    def nodes(self) -> list[dict]:
        """Return id, type and title of every node of the open graph."""
        return self.page.evaluate("() => app.graph.nodes.map(({id, type, title}) => ({id, type, title}))")

    def node_id(self, kind: str) -> int | str:
        """Return the id of the one node of that type.  Raises: BrowserError."""
        found = [node["id"] for node in self.nodes() if node["type"] == kind]
        if len(found) != 1:
            raise BrowserError(f"The graph has {len(found)} nodes of type {kind}, not one.")
        return found[0]

    def missing_types(self) -> list[str]:
        """Return the types of nodes that the host does not know, those inside subgraphs included."""
        return self.page.evaluate(
            """() => [app.graph, ...app.graph.subgraphs.values()].flatMap((graph) => graph.nodes)
                .filter((node) => !LiteGraph.registered_node_types[node.type] && !node.isSubgraphNode?.())
                .map((node) => node.type)"""
        )

    def prompt(self) -> dict:
        """Return the prompt that Run would queue for the open graph: node id -> class and inputs."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def set_widget(self, kind: str, name: str, value: object) -> None:
        """Give a widget of the one node of that type another value."""
        self.page.evaluate(
            """([id, name, value]) => {
                app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value = value;
            }""",
            [self.node_id(kind), name, value],
        )

    def select(self, node_id: int | str) -> None:
        """Click on a node's title, and on no button there, until the page has heard it."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            point = self.page.evaluate(_TITLE_POINT, node_id)
            self.page.mouse.click(*point)
            self.page.wait_for_timeout(200)
            if self.page.evaluate("(id) => Object.keys(app.canvas.selected_nodes).join() === `${id}`", node_id):
                return
            self.page.wait_for_timeout(2000)  # lost by a page that is busy drawing
        over = self.page.evaluate("([x, y]) => document.elementFromPoint(x, y)?.outerHTML.slice(0, 200)", point)
        raise BrowserError(f"Node {node_id} was clicked for {WAIT:g} s and is not selected; there lies {over}.")

    def open_help(self, node_id: int | str) -> None:
        """Click a node and its toolbox's Node Info; the panel on the right shows the node's help."""
        self.select(node_id)
        self.page.get_by_test_id("info-button").click()
        self.panel.locator("h1").wait_for()

    def close_first_workflow(self) -> None:
        """Close the empty graph that a first visit begins with, once another one is open."""
        self.page.get_by_test_id("topbar-workflow-tabs").get_by_text("Unsaved Workflow").hover()
        self.page.get_by_test_id("close-workflow-button").first.click()
        self.page.get_by_test_id("topbar-workflow-tabs").get_by_text("Unsaved Workflow").wait_for(state="detached")

    def wait_for_no_toast(self) -> None:
        """Wait until the page's passing messages, the last of which may just be coming, are gone."""
        self.page.wait_for_timeout(3000)
        gone = "() => !document.querySelector('.p-toast-message, [data-testid=queue-notification-banner]')"
        self.wait_for(gone)

    def fit(self) -> None:
        """Show the whole graph."""
        self.command("Comfy.Canvas.FitView")
        self.page.wait_for_timeout(600)  # the view glides there

    def box(self, node_id: int | str) -> dict:
        """Return x, y, width and height of a node in CSS pixels of the page."""
        return self.page.evaluate(_NODE_BOX, node_id)

    def hover_widget(self, kind: str, name: str) -> None:
        """Move the mouse onto a widget."""
        x, y = self.page.evaluate(_WIDGET_POINT, [self.node_id(kind), name])
        self.page.mouse.move(x - 4, y)
        self.page.mouse.move(x, y)

    def node_image(self, node_id: int | str, seconds: float = WAIT) -> dict:
        """Wait for the picture a node shows; return its address, width and height."""
        self.wait_for(_NODE_IMAGE, node_id, seconds)
        return self.page.evaluate(_NODE_IMAGE, node_id)

    def paint(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw a line on the open graph's one Painter, which Nodes 2.0 shows; points are shares of width and height."""
        box = self.page.get_by_test_id("painter-canvas").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place)
        self.page.mouse.up()

    def export(self) -> bytes:
        """Return the file that the menu's Export saves for the open graph."""
        with self.page.expect_download() as download:
            self.command("Comfy.ExportWorkflow")
            self.page.get_by_role("dialog").get_by_role("button").last.wait_for()
            self.page.keyboard.press("Enter")  # the name it proposes
        return Path(download.value.path()).read_bytes()

    # Running

    def choose_run(self, name: str) -> None:
        """Choose what Run does, by its name in the menu of the arrow beside it: Run, Run (On Change), Run (Instant)."""
        self.page.get_by_test_id("queue-mode-menu-trigger").click()
        self.page.get_by_role("menuitem", name=name, exact=True).click()

    def press_run(self) -> None:
        """Press Run; what the server tells from now on is in `events` and `previews`."""
        self.page.evaluate("() => { seen.events.length = 0; seen.previews.length = 0 }")
        self.page.get_by_test_id("queue-button").click()

    def run(self, seconds: float = 120.0) -> list[dict]:
        """Press Run and wait for the end; return the saved images as the host describes them.

        Raises: BrowserError when the prompt is refused, fails or is interrupted.
        """
        self.press_run()
        end = self.wait_for_end(seconds)
        if end["kind"] != "execution_success":
            raise BrowserError(f"The run ended with {end['kind']}: {end.get('exception_message', '')}")
        return [image for event in self.events("executed") for image in (event["output"] or {}).get("images", [])]

    def wait_for_end(self, seconds: float = 120.0) -> dict:
        """Wait until the run is over, one way or another, and return the message that said so."""
        script = "(kinds) => seen.events.find((event) => kinds.includes(event.kind))"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if end := self.page.evaluate(script, list(ENDS)):
                return end
            if self.page.get_by_test_id("error-overlay").is_visible() and not self.events("execution_start"):
                raise BrowserError(f"The prompt was refused: {self.page.get_by_test_id('error-overlay').inner_text()}")
            self.page.wait_for_timeout(50)
        raise BrowserError(f"The run did not end in {seconds:g} s; it got as far as {self.events('progress')[-1:]}.")

    def events(self, kind: str) -> list[dict]:
        """Return the server's messages of one kind since Run was pressed."""
        return self.page.evaluate("(kind) => seen.events.filter((event) => event.kind === kind)", kind)

    def previews(self) -> list[tuple[str, bytes]]:
        """Return every preview since Run was pressed: id of the node that shows it, and the picture's file."""
        return [(node, base64.b64decode(content)) for node, content in self.page.evaluate(_PREVIEWS)]

    # Pictures

    def screenshot(self, path: Path, clip: dict | None = None) -> bytes:
        """Write what the browser shows as PNG, all of it or one rectangle, and return the file's bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.page.screenshot(path=path, clip=clip)


def post_json(url: str, body: object) -> None:
    """POST `body` to a server on this machine."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    # No proxy: the server is on this machine.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        answer.read()
