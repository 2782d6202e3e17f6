"""Write tidy workflow files (litegraph JSON, version 0.4) from a few lines of Python.

loader = Node("UNETLoader", {"unet_name": "sana.safetensors"}, models=[{"name": ..., "url": ..., "directory": ...}])
encode = Node("SanaNativeGemmaEncode", {"clip": gemma, "prompt": "a fox"})
sampler = Node("KSampler", {"model": loader, "positive": encode[0], "negative": encode[1], ...}, title="Denoise")
workflow = build([loader, gemma, encode, sampler, ...], object_info, name="sana_txt2img")
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .workflow import (
    Spec,
    WorkflowError,
    chosen_specs,
    default,
    has_control,
    has_upload,
    input_specs,
    is_widget,
    options,
)
from .workflow_routes import TITLE_HEIGHT, reroute

ROOT = Path(__file__).resolve().parent.parent
HOST_VERSION = "0.30.0"
NOTES = ("Note", "MarkdownNote")
GROWING = "COMFY_AUTOGROW_V3"  # the type of an input that is a row of sockets, always one more than have links
FRAME_GAP, COLUMN_GAP, ROW_GAP = 50, 36, 54
FRAME_MARGIN, FRAME_TITLE = 15, 45
SLOT_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 20, 24, 90
DEFAULT_WIDTH = 210
# What nodes draw below their widgets.
PREVIEW_HEIGHT = {"SaveImage": 260, "SanaNativeSaveNamed": 208, "PreviewImage": 230, "LoadImage": 180, "PreviewAny": 80}
# Samplers show live previews there, and grow by this much at the first one, over the node below, unless they have it.
LIVE_PREVIEW_HEIGHT = {"SanaNativeSampler": 230, "KSampler": 230, "SamplerCustom": 230, "SamplerCustomAdvanced": 230,
                       "SanaNativeTrainLora": 260, "SanaNativeTrainModel": 260}  # fmt: skip
# What they grow by all the same, as the page showed: 30 px, and this in Nodes 2.0. Their frame has room for it.
PREVIEW_GROWTH = 58
# What nodes need at least in Nodes 2.0, where the page adds its own margins, and a strip if the node has an error.
ELEMENT_HEIGHT = {
    "SanaNativeGemmaLoader": 114,
    "SanaNativeDCAELoader": 114,
    "SanaNativeLoraLoader": 114,
    "SanaNativeControlNetLoader": 114,
    "SanaNativeScribble": 114,
    "SanaNativeEmptyLatent": 198,
    "SanaNativeDCAEDecode": 130,
    "SanaNativeDCAEEncode": 130,
    "LoadImage": 350,
    "PreviewImage": 264,
    "PreviewAny": 138,
    "LatentFromBatch": 90,
    "FluxGuidance": 62,
    "CLIPTextEncode": 124,
    "EmptyLatentImage": 118,
    "ImageScaleToTotalPixels": 114,
    "VAEDecode": 54,
    "ControlNetApplyAdvanced": 198,
    "EmptyImage": 146,
    "BatchImagesNode": 106,  # with three images
    "CLIPVisionLoader": 86,
    "CLIPLoader": 114,
    "SanaNativePictureDifference": 146,
    "SanaNativeGrid": 218,
    "SanaNativeClipScore": 166,
    "Painter": 570,  # 240 px wide, with an image linked
}
ERROR_STRIP = 24
NOTE_LINE, NOTE_LETTER, NOTE_GAP, NOTE_LEAST = 18, 6.6, 15, 88


@dataclass(eq=False)
class Node:
    """A node to be: `inputs` by name, each a plain value, another node (its output 0) or `node[slot]`.

    Without `pos` it is put into the column after the nodes it reads; `models` are the files to offer for download;
    `control` is what its seed does after a run; `mode` is as in `workflow.py` (bypassed, muted); a note's text is the
    input `text`. `width`: the widest of a column gives its width to all of it. `properties`: what a node's part of the
    page remembers besides its inputs.
    """

    type: str
    inputs: dict[str, object] = field(default_factory=dict)
    title: str = ""
    pos: tuple[float, float] | None = None
    width: float = 0
    models: Sequence[dict] = ()
    control: str = "randomize"
    color: str = ""
    mode: int = 0
    properties: Mapping[str, object] = field(default_factory=dict)

    def __getitem__(self, slot: int) -> Output:
        return Output(self, slot)


@dataclass(frozen=True)
class Output:
    """One output of a node, to be given as an input of another."""

    node: Node
    slot: int


@dataclass
class Group:
    """A titled frame around some of the nodes, which stand in columns from left to right."""

    title: str
    columns: Sequence[Sequence[Node]]
    color: str = "#3f789e"

    @property
    def nodes(self) -> list[Node]:
        return [node for column in self.columns for node in column]


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
    frames = [_group(number, group, entries, ids) for number, group in enumerate(groups, 1)]
    _place_notes(entries, frames)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"sana-native/{name}")),
        "revision": 0,
        "last_node_id": len(entries),
        "last_link_id": len(links),
        "nodes": entries,
        "links": links,
        "groups": frames,
        "config": {},
        "extra": reroute(entries, links),
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
    for name, spec in input_specs(info):
        required.update(grown for grown, _ in grown_specs(spec, {}, name)[:-1])
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
    if any(has_upload(spec) for _, spec in specs):
        values.append("image")  # the upload button
    outputs = [{"name": label, "type": kind, "links": []} for label, kind in zip(info["output_name"], info["output"])]
    multiline = sum(bool(options(spec).get("multiline")) for _, spec in specs)
    sockets = max(sum("widget" not in slot for slot in slots), len(outputs))
    preview = PREVIEW_HEIGHT.get(node.type, 0)
    texts = multiline * (TEXT_HEIGHT - WIDGET_HEIGHT)
    live_preview = LIVE_PREVIEW_HEIGHT.get(node.type, 0)
    # Samplers end their columns: with a preview and the advanced inputs they grow into the free space below.
    folded = sum(bool(options(spec).get("advanced")) for _, spec in specs) if live_preview else 0
    height = sockets * SLOT_HEIGHT + (len(values) - folded) * WIDGET_HEIGHT + texts + preview + live_preview + 14
    return _common(
        node,
        ids,
        (
            node.width or DEFAULT_WIDTH,
            max(height, ELEMENT_HEIGHT.get(node.type, 0) + (ERROR_STRIP if node.models else 0)),
        ),
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
    """A note, whose size `_place_notes` finds."""
    text = str(node.inputs.get("text", ""))
    return _common(node, ids, (DEFAULT_WIDTH, 0), inputs=[], outputs=[], properties={}, widgets_values=[text])


def _common(node: Node, ids: dict[Node, int], size: tuple[float, float], **parts: object) -> dict:
    entry = {
        "id": ids[node],
        "type": node.type,
        "pos": list(node.pos or (0, 0)),
        "size": list(size),
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
        **node.properties,
    }
    return {**properties, "models": [dict(model) for model in node.models]} if node.models else properties


def expand(specs: list[tuple[str, Spec]], given: dict, prefix: str = "") -> list[tuple[str, Spec]]:
    """Inputs with those that dynamic inputs bring, under their dotted names; `given`: values by name.

    A dynamic combo brings those of its choice; an input that grows with its links is replaced by those it shows.
    """
    expanded = []
    for name, spec in specs:
        full = prefix + name
        expanded += grown_specs(spec, given, full) or [(full, spec)]
        expanded += expand(chosen_specs(spec, given.get(full, default(spec))), given, f"{full}.")
    return expanded


def grown_specs(spec: Spec, given: dict, name: str) -> list[tuple[str, Spec]]:
    """What an input that grows with its links shows: the least it has, those given, and a free one; else none."""
    if spec[0] != GROWING:
        return []
    template = options(spec)["template"]
    names = [f"{name}.{template['prefix']}{number}" for number in range(template["max"])]
    shown = max(template["min"], sum(grown in given for grown in names)) + 1
    ((_, one),) = template["input"]["required"].items()
    return [(grown, one) for grown in names[:shown]]


def _link_outputs(entries: list[dict], links: list[list]) -> None:
    by_id = {entry["id"]: entry for entry in entries}
    for link in links:
        by_id[link[1]]["outputs"][link[2]]["links"].append(link[0])


def _place(nodes: Sequence[Node], entries: list[dict], groups: Sequence[Group]) -> None:
    """Give nodes without a position a place: the columns of each group, or one for each step from the sources where
    groups leave nodes out.
    """
    sizes = {node: entry["size"] for node, entry in zip(nodes, entries)}
    placed = [node for node in nodes if node.pos is None and node.type not in NOTES]
    framed = [group.columns for group in groups]
    grouped = {node for group in groups for node in group.nodes}
    if not grouped.issuperset(placed):
        depths = sorted({_depth(node) for node in placed})
        framed = [[[node for node in placed if _depth(node) == depth]] for depth in depths]
    places, x = {}, 0.0
    for columns in framed:
        for column in columns:
            y, width = 0.0, max(sizes[node][0] for node in column)
            for node in column:
                sizes[node][0] = width
                places[node] = [x, y]
                y += sizes[node][1] + ROW_GAP
            x += width + COLUMN_GAP
        x += FRAME_GAP - COLUMN_GAP
    for node, entry in zip(nodes, entries):
        entry["pos"] = places.get(node, entry["pos"])


def _place_notes(entries: Sequence[dict], frames: Sequence[dict]) -> None:
    """Notes lie above the frames, as wide as all of them, and as high as their text."""
    notes = [entry for entry in entries if entry["type"] in NOTES and entry["pos"] == [0, 0]]
    nodes = [entry for entry in entries if entry["type"] not in NOTES]
    left = min((node["pos"][0] for node in nodes), default=0)
    width = max((node["pos"][0] + node["size"][0] for node in nodes), default=4 * DEFAULT_WIDTH) - left
    bottom = min((frame["bounding"][1] for frame in frames), default=-TITLE_HEIGHT) - NOTE_GAP
    for note in notes:
        paragraphs = re.sub(r"\]\(.+?\)", "]", note["widgets_values"][0]).split("\n\n")  # a link shows its words alone
        lines = sum(1 + int(len(line) * NOTE_LETTER / width) for text in paragraphs for line in text.splitlines())
        note["size"] = [width, max(NOTE_LEAST, 40 + NOTE_LINE * lines + (len(paragraphs) - 1) * NOTE_LINE // 2)]
        bottom -= note["size"][1]
        note["pos"] = [left, bottom]
        bottom -= TITLE_HEIGHT + NOTE_GAP


def _depth(node: Node) -> int:
    sources = [value if isinstance(value, Node) else value.node for value in node.inputs.values() if _is_link(value)]
    return 1 + max(map(_depth, sources), default=-1)


def _group(number: int, group: Group, entries: list[dict], ids: dict[Node, int]) -> dict:
    framed = [entry for entry in entries if entry["id"] in {ids[node] for node in group.nodes}]
    grown = {entry["id"]: PREVIEW_GROWTH for entry in framed if entry["type"] in LIVE_PREVIEW_HEIGHT}
    boxes = [(*e["pos"], e["size"][0], e["size"][1] + grown.get(e["id"], 0)) for e in framed]
    left, top = min(box[0] for box in boxes) - FRAME_MARGIN, min(box[1] for box in boxes) - TITLE_HEIGHT - FRAME_TITLE
    right, bottom = max(b[0] + b[2] for b in boxes) + FRAME_MARGIN, max(b[1] + b[3] for b in boxes) + FRAME_MARGIN
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
