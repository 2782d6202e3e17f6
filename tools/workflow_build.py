"""Write tidy workflow files (litegraph JSON, version 0.4) from a few lines of Python.

loader = Node("UNETLoader", {"unet_name": "sana.safetensors"}, models=[{"name": ..., "url": ..., "directory": ...}])
encode = Node("SanaNativeGemmaEncode", {"clip": gemma, "prompt": "a fox"})
sampler = Node("KSampler", {"model": loader, "positive": encode[0], "negative": encode[1], ...}, title="Denoise")
workflow = build([loader, gemma, encode, sampler, ...], object_info, name="sana_txt2img")
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .workflow import Spec, WorkflowError, chosen_specs, default, has_control, input_specs, is_widget, options

ROOT = Path(__file__).resolve().parent.parent
HOST_VERSION = "0.30.0"
NOTES = ("Note", "MarkdownNote")
COLUMN_GAP, ROW_GAP, TITLE_HEIGHT = 60, 60, 30
SLOT_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 20, 24, 140
WIDTH, TEXT_WIDTH = 300, 420
# What nodes draw below their widgets.
PREVIEW_HEIGHT = {"SaveImage": 320, "PreviewImage": 320, "LoadImage": 270, "PreviewAny": 180}
# Samplers show live previews there, and grow by this much at the first one, over the node below, unless they have it.
LIVE_PREVIEW_HEIGHT = {"SanaNativeSampler": 230, "KSampler": 230, "SamplerCustom": 230, "SamplerCustomAdvanced": 230}


@dataclass(eq=False)
class Node:
    """A node to be: `inputs` by name, each a plain value, another node (its output 0) or `node[slot]`.

    Without `pos` it is put into the column after the nodes it reads; `models` are the files to offer for download;
    `control` is what its seed does after a run; `mode` is as in `workflow.py` (bypassed, muted); a note's text is the
    input `text`.
    """

    type: str
    inputs: dict[str, object] = field(default_factory=dict)
    title: str = ""
    pos: tuple[float, float] | None = None
    size: tuple[float, float] | None = None
    models: Sequence[dict] = ()
    control: str = "randomize"
    color: str = ""
    mode: int = 0

    def __getitem__(self, slot: int) -> Output:
        return Output(self, slot)


@dataclass(frozen=True)
class Output:
    """One output of a node, to be given as an input of another."""

    node: Node
    slot: int


@dataclass
class Group:
    """A titled frame around some of the nodes."""

    title: str
    nodes: Sequence[Node]
    color: str = "#3f789e"


def build(nodes: Sequence[Node], object_info: dict, *, name: str = "workflow", groups: Sequence[Group] = ()) -> dict:
    """Return the workflow as the frontend would save it; node ids are 1, 2, ... in the given order.

    Raises: WorkflowError for an unknown node type, input name or output, and for a required input without a link.
    """
    ids = {node: number for number, node in enumerate(nodes, 1)}
    entries, links = [], []
    for node in nodes:
        entries.append(_note(node, ids) if node.type in NOTES else _entry(node, ids, object_info, links))
    _link_outputs(entries, links)
    _place(nodes, entries, groups)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"sana-native/{name}")),
        "revision": 0,
        "last_node_id": len(entries),
        "last_link_id": len(links),
        "nodes": entries,
        "links": links,
        "groups": [_group(number, group, entries, ids) for number, group in enumerate(groups, 1)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _entry(node: Node, ids: dict[Node, int], object_info: dict, links: list[list]) -> dict:
    info = object_info.get(node.type)
    if info is None:
        raise WorkflowError(f"There is no node {node.type}; check its spelling, or load the pack that has it.")
    specs = expand(input_specs(info), node.inputs)
    known = {name for name, _ in specs}
    for name in node.inputs:
        if name not in known:
            raise WorkflowError(f"{node.type} has no input {name}; it has {', '.join(sorted(known))}.")
    required = set(info["input"].get("required") or {})
    slots, values = [], []
    # Bare sockets come first, as in a file saved by the frontend.
    for name, spec in sorted(specs, key=lambda pair: is_widget(pair[1])):
        if options(spec).get("socketless"):
            continue
        slots.append(_slot(node, name, spec, len(slots), ids, object_info, links, optional=name not in required))
    for name, spec in specs:
        if is_widget(spec):
            given = node.inputs.get(name)
            values.append(default(spec) if given is None or _is_link(given) else given)
            if has_control(name, spec):
                values.append(node.control)
    if any(options(spec).get("image_upload") for _, spec in specs):
        values.append("image")  # the upload button
    outputs = [{"name": label, "type": kind, "links": []} for label, kind in zip(info["output_name"], info["output"])]
    multiline = sum(bool(options(spec).get("multiline")) for _, spec in specs)
    sockets = max(sum("widget" not in slot for slot in slots), len(outputs))
    preview = PREVIEW_HEIGHT.get(node.type, 0)
    texts = multiline * (TEXT_HEIGHT - WIDGET_HEIGHT)
    live_preview = LIVE_PREVIEW_HEIGHT.get(node.type, 0)
    height = sockets * SLOT_HEIGHT + len(values) * WIDGET_HEIGHT + texts + preview + live_preview + 14
    return _common(
        node,
        ids,
        (TEXT_WIDTH if multiline or preview else WIDTH, height),
        inputs=slots,
        outputs=outputs,
        properties=_properties(node, info),
        widgets_values=values,
    )


def _slot(
    node: Node,
    name: str,
    spec: Spec,
    index: int,
    ids: dict[Node, int],
    object_info: dict,
    links: list[list],
    optional: bool,
) -> dict:
    """Make one input socket and, when another node feeds it, the link."""
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    slot = {"name": name, "type": kind, "link": None}
    if optional and not is_widget(spec):
        slot["shape"] = 7  # drawn hollow
    if is_widget(spec):
        slot["widget"] = {"name": name}
    value = node.inputs.get(name)
    if _is_link(value):
        source = value if isinstance(value, Output) else Output(value, 0)
        if source.node not in ids:
            raise WorkflowError(f"{node.type}.{name} reads {source.node.type}, which is not among the nodes; add it.")
        types = object_info[source.node.type]["output"]
        if source.slot >= len(types):
            raise WorkflowError(
                f"{source.node.type} has {len(types)} outputs, but {node.type}.{name} asks for output "
                f"{source.slot}; count from 0."
            )
        slot["link"] = len(links) + 1
        links.append([slot["link"], ids[source.node], source.slot, ids[node], index, types[source.slot]])
    elif not is_widget(spec) and not optional:
        raise WorkflowError(f"{node.type}.{name} needs a link from another node; give a node or node[slot].")
    return slot


def _note(node: Node, ids: dict[Node, int]) -> dict:
    text = str(node.inputs.get("text", ""))
    shown = re.sub(r"\]\(.+?\)", "]", text)  # a link shows its words alone
    lines = sum(1 + len(line) // 60 for line in shown.splitlines())
    size = (TEXT_WIDTH, 60 + 18 * lines)
    return _common(node, ids, size, inputs=[], outputs=[], properties={}, widgets_values=[text])


def _common(node: Node, ids: dict[Node, int], size: tuple[float, float], **parts: object) -> dict:
    entry = {
        "id": ids[node],
        "type": node.type,
        "pos": list(node.pos or (0, 0)),
        "size": list(node.size or size),
        "flags": {},
        "order": ids[node] - 1,
        "mode": node.mode,
        **parts,
    }
    if node.title:
        entry["title"] = node.title
    if node.color:
        entry |= {"color": node.color, "bgcolor": node.color}
    return entry


def _properties(node: Node, info: dict) -> dict:
    ours = info.get("python_module", "").startswith("custom_nodes")
    properties = {
        "Node name for S&R": node.type,
        "cnr_id": "sana-native" if ours else "comfy-core",
        "ver": pack_version() if ours else HOST_VERSION,
    }
    return {**properties, "models": [dict(model) for model in node.models]} if node.models else properties


def expand(specs: list[tuple[str, Spec]], given: dict, prefix: str = "") -> list[tuple[str, Spec]]:
    """Inputs with those that the choices of dynamic combos bring, under their dotted names; `given`: values by name."""
    expanded = []
    for name, spec in specs:
        full = prefix + name
        expanded.append((full, spec))
        expanded += expand(chosen_specs(spec, given.get(full, default(spec))), given, f"{full}.")
    return expanded


def _link_outputs(entries: list[dict], links: list[list]) -> None:
    by_id = {entry["id"]: entry for entry in entries}
    for link in links:
        by_id[link[1]]["outputs"][link[2]]["links"].append(link[0])


def _place(nodes: Sequence[Node], entries: list[dict], groups: Sequence[Group]) -> None:
    """Give nodes without a position a place: a column for each group, or for each step from the sources where groups
    leave nodes out; notes left of all.
    """
    sizes = {node: entry["size"] for node, entry in zip(nodes, entries)}
    column_of = {node: number for number, group in enumerate(groups) for node in group.nodes}
    if any(node not in column_of and node.type not in NOTES for node in nodes):
        column_of = {}
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        if node.pos is None:
            columns.setdefault(column_of.get(node, _depth(node)), []).append(node)
    places, x = {}, 0.0
    for _, column in sorted(columns.items()):
        y, width = 0.0, max(sizes[node][0] for node in column)
        for node in column:
            sizes[node][0] = node.size[0] if node.size else width
            places[node] = [x, y]
            y += sizes[node][1] + ROW_GAP
        x += width + COLUMN_GAP
    for node, entry in zip(nodes, entries):
        entry["pos"] = places.get(node, entry["pos"])


def _depth(node: Node) -> int:
    if node.type in NOTES:
        return -1
    sources = [value if isinstance(value, Node) else value.node for value in node.inputs.values() if _is_link(value)]
    return 1 + max(map(_depth, sources), default=-1)


def _group(number: int, group: Group, entries: list[dict], ids: dict[Node, int]) -> dict:
    boxes = [(*entry["pos"], *entry["size"]) for entry in entries if entry["id"] in {ids[node] for node in group.nodes}]
    left, top = min(box[0] for box in boxes) - 15, min(box[1] for box in boxes) - TITLE_HEIGHT - 45
    right, bottom = max(box[0] + box[2] for box in boxes) + 15, max(box[1] + box[3] for box in boxes) + 15
    return {
        "id": number,
        "title": group.title,
        "bounding": [left, top, right - left, bottom - top],
        "color": group.color,
        "font_size": 24,
        "flags": {},
    }


def _is_link(value: object) -> bool:
    return isinstance(value, (Node, Output))


def pack_version() -> str:
    """The version in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "([^"]+)"', text, re.MULTILINE).group(1)
