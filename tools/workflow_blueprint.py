"""Subgraph blueprints: several nodes as one, which the host lists beside its own; and unfolding subgraphs again.

Source: the blueprints that come with ComfyUI 0.30 (a workflow of one node, whose type is the subgraph it defines).
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from .workflow_build import Group, Node, Output, build

INPUT_NODE, OUTPUT_NODE = -10, -20  # the frontend's ids for the two ends of a subgraph
EDGE_WIDTH, EDGE_GAP, ROW = 160, 80, 20
SIZE = (400, 460)


@dataclass(frozen=True)
class Blueprint:
    """`shown`: the widgets that the one node has, each as (node inside, its input); `output`: what comes out of it."""

    groups: Sequence[Group]
    shown: Sequence[tuple[Node, str]]
    output: Output
    description: str
    aliases: Sequence[str]

    @property
    def nodes(self) -> list[Node]:
        return [node for group in self.groups for node in group.nodes]


def build_blueprint(name: str, blueprint: Blueprint, object_info: dict) -> dict:
    """The file the host takes for a blueprint of that name."""
    inside = build(blueprint.nodes, object_info, name=name, groups=blueprint.groups)
    ids = {node: number for number, node in enumerate(blueprint.nodes, 1)}
    subgraph = _subgraph(name, blueprint, inside, ids)
    outputs = [{"name": end["name"], "type": end["type"], "links": []} for end in subgraph["outputs"]]
    inputs = [
        {"name": end["name"], "type": end["type"], "widget": {"name": end["name"]}, "link": None}
        for end in subgraph["inputs"]
    ]
    properties = {"proxyWidgets": [[str(ids[node]), widget] for node, widget in blueprint.shown]}
    ours = inside["nodes"][0]["properties"]
    number = len(ids) + 1  # the frontend gives ids anew to nodes inside that share one with a node outside
    node = {
        "id": number,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": list(SIZE),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "title": name,
        "properties": properties | {"cnr_id": ours["cnr_id"], "ver": ours["ver"]},
        "widgets_values": [],
    }
    return {
        "id": _uuid(f"{name}/file"),
        "revision": 0,
        "last_node_id": number,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)},
        "version": 0.4,
    }


def _subgraph(name: str, blueprint: Blueprint, inside: dict, ids: dict[Node, int]) -> dict:
    """The definition: what `build` made, with links as objects, and its two ends."""
    nodes = {node["id"]: node for node in inside["nodes"]}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in inside["links"]]
    left = min(node["pos"][0] for node in inside["nodes"]) - EDGE_WIDTH - EDGE_GAP
    right = max(node["pos"][0] + node["size"][0] for node in inside["nodes"]) + EDGE_GAP
    ends = []
    for number, (node, widget) in enumerate(blueprint.shown):
        slots = nodes[ids[node]]["inputs"]
        slot = next(i for i, entry in enumerate(slots) if entry["name"] == widget)
        link = dict(zip(keys, (len(links) + 1, INPUT_NODE, number, ids[node], slot, slots[slot]["type"]), strict=True))
        slots[slot]["link"] = link["id"]
        links.append(link)
        ends.append(_end(name, widget, link, [left + EDGE_WIDTH - ROW, (number + 1) * ROW]))
    source = nodes[ids[blueprint.output.node]]["outputs"][blueprint.output.slot]
    last = (len(links) + 1, ids[blueprint.output.node], blueprint.output.slot, OUTPUT_NODE, 0, source["type"])
    links.append(dict(zip(keys, last, strict=True)))
    source["links"].append(last[0])
    return {
        "id": _uuid(name),
        "version": 1,
        "state": {
            "lastGroupId": len(inside["groups"]),
            "lastNodeId": len(nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT_NODE, "bounding": [left, 0, EDGE_WIDTH, ROW * (len(ends) + 2)]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [right, 0, EDGE_WIDTH, ROW * 3]},
        "inputs": ends,
        "outputs": [_end(name, source["name"], links[-1], [right + ROW, ROW])],
        "widgets": [],
        "nodes": inside["nodes"],
        "groups": inside["groups"],
        "links": links,
        "extra": {},
        "category": "Image generation and editing/Text to image",
        "description": blueprint.description,
    }


def _end(name: str, label: str, link: dict, place: list[float]) -> dict:
    return {
        "id": _uuid(f"{name}/{label}"),
        "name": label,
        "type": link["type"],
        "linkIds": [link["id"]],
        "pos": place,
    }


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sana-native/blueprints/{name}"))


def unfold(workflow: dict) -> dict:
    """The workflow with each subgraph's node replaced by what is inside it, under the frontend's ids `outer:inner`."""
    flat = copy.deepcopy(workflow)
    definitions = {graph["id"]: graph for graph in flat.get("definitions", {}).get("subgraphs", [])}
    while found := [node for node in flat["nodes"] if node["type"] in definitions]:
        for node in found:
            _replace(flat, node, definitions[node["type"]])
    return flat


def _replace(flat: dict, outer: dict, definition: dict) -> None:
    nodes = {node["id"]: node for node in copy.deepcopy(definition["nodes"])}
    feeding = {slot["name"]: slot.get("link") for slot in outer["inputs"]}
    coming_in = [feeding.get(end["name"]) for end in definition["inputs"]]
    going_out, kept = {}, []
    for link in definition["links"]:
        origin, target = link["origin_id"], link["target_id"]
        if target == OUTPUT_NODE:
            going_out[link["target_slot"]] = [f"{outer['id']}:{origin}", link["origin_slot"]]
            continue
        inside = origin != INPUT_NODE
        number = f"{outer['id']}:{link['id']}" if inside else coming_in[link["origin_slot"]]
        nodes[target]["inputs"][link["target_slot"]]["link"] = number
        if inside:
            ends = [f"{outer['id']}:{origin}", link["origin_slot"], f"{outer['id']}:{target}", link["target_slot"]]
            kept.append([number, *ends, link["type"]])
    for link in flat["links"]:
        if link[1] == outer["id"]:
            link[1:3] = going_out[link[2]]
    for node in nodes.values():
        node["id"] = f"{outer['id']}:{node['id']}"
    flat["nodes"] = [node for node in flat["nodes"] if node is not outer] + list(nodes.values())
    flat["links"] += kept
