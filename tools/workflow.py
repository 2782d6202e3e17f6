"""Turn workflows as users save and share them (litegraph JSON, version 0.4) into the API prompt a server runs.

Source: behaviour of the ComfyUI frontend 1.47 when it queues a graph; /object_info gives the order of the widgets.
Writing such workflows is in `workflow_build.py`. Subgraphs are not unfolded here.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator

WIDGET_TYPES = {
    "INT",
    "FLOAT",
    "STRING",
    "BOOLEAN",
    "COMBO",
    "COLOR",
    "PAINTER",
    "MARKDOWN",
    "TEXTAREA",
    "CURVE",
    "RANGE",
    "BOUNDING_BOX",
    "COMFY_DYNAMICCOMBO_V3",
}
CONTROL_WORDS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
UPLOAD_OPTIONS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload", "file_upload")
FRONTEND_NODES = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
MUTED, BYPASSED = 2, 4

Spec = list
"""An input as /object_info describes it: [type or list of choices, options]."""


class WorkflowError(ValueError):
    """The workflow cannot be converted; the message names the node and the cure."""


def to_api(workflow: dict, object_info: dict) -> dict:
    """Convert a workflow to the prompt the frontend would queue for it: node id -> class, inputs, title.

    Notes, muted and bypassed nodes vanish; reroutes and primitives are replaced by what they carry.
    Raises: WorkflowError for a node type that `object_info` lacks.
    """
    graph = _Graph(workflow)
    prompt = {}
    for node in sorted(workflow["nodes"], key=lambda node: node.get("order", 0)):
        if node["type"] in FRONTEND_NODES or node.get("mode") in (MUTED, BYPASSED):
            continue
        info = object_info.get(node["type"])
        if info is None:
            raise WorkflowError(
                f"The workflow holds the node {node['type']}, which this ComfyUI lacks (or which is a "
                "subgraph); install the pack it comes from, or unpack the subgraph."
            )
        inputs = read_widgets(info, node.get("widgets_values") or [])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                source = graph.source(slot["link"])
                if source is not None:
                    inputs[slot["name"]] = source
                elif slot.get("widget") is None:
                    inputs.pop(slot["name"], None)
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or info.get("display_name") or node["type"]},
        }
    return prompt


def set_inputs(prompt: dict, title_or_class: str, /, **values: object) -> dict:
    """Return a copy of `prompt` with inputs of the one node of that title or class changed.

    Raises: WorkflowError when no node or several match, or when the node has no such input.
    """
    found = find_node(prompt, title_or_class)
    changed = copy.deepcopy(prompt)
    inputs = changed[found]["inputs"]
    for name, value in values.items():
        if name not in inputs:
            raise WorkflowError(f"{title_or_class} has no input {name}; it has {', '.join(inputs)}.")
        inputs[name] = value
    return changed


def find_node(prompt: dict, title_or_class: str) -> str:
    """Return the id of the one node of that title or class.  Raises: WorkflowError when no node or several match."""
    found = [key for key, node in prompt.items() if title_or_class in (node["class_type"], title_of(node))]
    if len(found) != 1:
        raise WorkflowError(
            f"{len(found)} nodes are called {title_or_class}, expected one; give a title or class that "
            f"only one node has: {', '.join(sole_names(prompt))}."
        )
    return found[0]


def title_of(node: dict) -> str:
    """Return a node's title in an API prompt, its class where it has none."""
    return node.get("_meta", {}).get("title") or node["class_type"]


def sole_names(prompt: dict) -> list[str]:
    """List the titles that one node alone has, in the prompt's order."""
    titles = [title_of(node) for node in prompt.values()]
    return [title for title in titles if titles.count(title) == 1]


def typed(text: str, old: object) -> object:
    """A text as the kind of value that an input holds: on or off, a number, or else the text itself.

    Raises: WorkflowError when it is none of that kind.
    """
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise WorkflowError(f'"{text}" is neither true nor false.')
        return text.lower() == "true"
    if isinstance(old, int | float):
        for kind in (type(old), float):  # a whole number in the graph may be a float's
            with contextlib.suppress(ValueError):
                return kind(text)
        raise WorkflowError(f'"{text}" is no number, where the graph has {old}.')
    return text


def read_widgets(info: dict, values: list | dict) -> dict:
    """Name the saved widget values of a node; a value that was not saved gets its default."""
    if isinstance(values, dict):
        return {name: values[name] for name, spec in input_specs(info) if is_widget(spec) and name in values}
    queue = deque(values)
    named = {}
    for group in ("required", "optional"):
        specs = list(_group_specs(info["input"], info.get("input_order", {}), group))
        _take(specs, "", queue, named)
        uploads = any(has_upload(spec) for _, spec in specs)
        if group == "required" and uploads and queue:
            queue.popleft()  # the upload button, which the frontend adds as a last required widget
    return named


def has_upload(spec: Spec) -> bool:
    """Say whether the frontend adds an upload button for this input; the Painter's widget uploads by itself."""
    painted = options(spec).get("widgetType") == "PAINTER"
    return not painted and any(options(spec).get(flag) for flag in UPLOAD_OPTIONS)


def input_specs(info: dict) -> list[tuple[str, Spec]]:
    """List a node's visible inputs in the order the frontend shows them."""
    order = info.get("input_order", {})
    return [pair for group in ("required", "optional") for pair in _group_specs(info["input"], order, group)]


def is_widget(spec: Spec) -> bool:
    """Say whether the frontend draws a widget for this input (rather than a bare socket)."""
    kind = options(spec).get("widgetType", spec[0])
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options(spec).get("forceInput")


def options(spec: Spec) -> dict:
    """Return the options of an input, an empty dict when it has none."""
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def choices(spec: Spec) -> list:
    """Return what a combo offers; for a combo whose choice brings further inputs, the keys."""
    offered = spec[0] if isinstance(spec[0], list) else options(spec).get("options", [])
    return [choice["key"] if isinstance(choice, dict) else choice for choice in offered]


def default(spec: Spec) -> object:
    """Return the value a fresh widget shows."""
    if "default" in options(spec):
        return options(spec)["default"]
    return next(iter(choices(spec)), {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(str(spec[0]), ""))


def has_control(name: str, spec: Spec) -> bool:
    """Say whether a control-after-generate widget follows this one in the saved values."""
    wanted = options(spec).get("control_after_generate")
    return bool(wanted) or (wanted is None and spec[0] == "INT" and name in ("seed", "noise_seed"))


def chosen_specs(spec: Spec, value: object) -> list[tuple[str, Spec]]:
    """Return the inputs that the choice `value` of a dynamic combo brings; none for other inputs."""
    if spec[0] != "COMFY_DYNAMICCOMBO_V3":
        return []
    inputs = next((option["inputs"] for option in options(spec)["options"] if option["key"] == value), {})
    return [pair for group in ("required", "optional") for pair in _group_specs(inputs, {}, group)]


def _group_specs(inputs: dict, order: dict, group: str) -> Iterator[tuple[str, Spec]]:
    specs = inputs.get(group) or {}
    for name in order.get(group) or specs:
        if name in specs:
            yield name, specs[name]


def _take(specs: list[tuple[str, Spec]], prefix: str, queue: deque, named: dict) -> None:
    """Move values from `queue` to `named`, widget by widget."""
    for name, spec in specs:
        if not is_widget(spec):
            continue
        value = queue.popleft() if queue else default(spec)
        named[prefix + name] = {"__value__": value} if isinstance(value, list) else value
        if has_control(name, spec) and queue and queue[0] in CONTROL_WORDS:
            queue.popleft()
            if queue and (isinstance(spec[0], list) or spec[0] == "COMBO"):
                queue.popleft()  # the filter that belongs to a controlled combo
        _take(chosen_specs(spec, value), f"{prefix}{name}.", queue, named)


class _Graph:
    """Follows links to what really produces a value."""

    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: link for link in workflow["links"]}

    def source(self, link_id: int) -> object:
        """Return [node id, slot], a primitive's plain value, or None where the link leads nowhere."""
        link = self.links.get(link_id)
        node = self.nodes.get(link[1]) if link else None
        if node is None or node.get("mode") == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return (node.get("widgets_values") or [None])[0]
        if node["type"] == "Reroute":
            return self._through(node["inputs"][0])
        if node.get("mode") == BYPASSED:
            return self._bypass(node, link[2])
        return [str(node["id"]), link[2]]

    def _bypass(self, node: dict, slot: int) -> object:
        """An output of a bypassed node is its input of that type: at the same place, or else the first."""
        inputs, wanted = node.get("inputs", []), node["outputs"][slot]["type"]
        at_same_place = inputs[slot : slot + 1]
        fitting = [entry for entry in at_same_place + inputs if entry["type"] == wanted]
        return self._through(fitting[0]) if fitting else None

    def _through(self, slot: dict) -> object:
        return None if slot.get("link") is None else self.source(slot["link"])
