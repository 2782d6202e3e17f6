"""Links of a workflow that would run under a node, led around it by reroute points.

Source: the frontend's own links: a cubic curve with control points a quarter of the distance beside its ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top (title bar included), right, bottom."""

TITLE_HEIGHT, SLOT_HEIGHT = 30, 20
STEPS = 40
SLACK = 3  # how far a link may run under a node's edge
ASIDE, LANE = 14, 10  # from a node's side to the first reroute, from a node's edge to a lane
SPREAD = 7  # between two links that take the same way


def box_of(node: dict) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def ends(link: Sequence, nodes: dict[int, dict]) -> tuple[Point, Point]:
    """Where a link leaves its source and where it enters its target."""
    source, target = nodes[link[1]], nodes[link[3]]
    start = (source["pos"][0] + source["size"][0], source["pos"][1] + SLOT_HEIGHT * (link[2] + 0.7))
    slot = target["inputs"][link[4]]
    below = target["pos"][1] + target["size"][1] / 2  # a widget's socket is beside the widget
    level = below if "widget" in slot else target["pos"][1] + SLOT_HEIGHT * (link[4] + 0.7)
    return start, (target["pos"][0], level)


def curve(start: Point, end: Point) -> list[Point]:
    """Points of the curve that the frontend draws from an output to an input."""
    reach = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5 / 4
    points = []
    for step in range(STEPS + 1):
        t = step / STEPS
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        xs, ys = (start[0], start[0] + reach, end[0] - reach, end[0]), (start[1], start[1], end[1], end[1])
        points.append(tuple(sum(w * v for w, v in zip(weights, axis, strict=True)) for axis in (xs, ys)))
    return points


def path(start: Point, end: Point, reroutes: Sequence[Point] = ()) -> list[Point]:
    """Points of a link: one curve, or straight lines from reroute to reroute."""
    if not reroutes:
        return curve(start, end)
    points = []
    for one, other in pairwise([start, *reroutes, end]):
        points += [tuple(a + (b - a) * step / STEPS for a, b in zip(one, other)) for step in range(STEPS + 1)]
    return points


def runs_under(points: Sequence[Point], boxes: Sequence[Box]) -> bool:
    return any(
        left + SLACK < x < right - SLACK and top + SLACK < y < bottom - SLACK
        for left, top, right, bottom in boxes
        for x, y in points
    )


def reroute(nodes: Sequence[dict], links: Sequence[Sequence]) -> dict[str, list]:
    """Return what a workflow's `extra` holds of reroutes: their places, and which link ends at which.

    A link is led along a lane above or below the nodes between its ends; the shortest way that is free is taken.
    """
    by_id = {node["id"]: node for node in nodes}
    boxes = [box_of(node) for node in nodes]
    found: dict[str, list] = {"reroutes": [], "linkExtensions": []}
    led = 0
    for link in links:
        start, end = ends(link, by_id)
        if not runs_under(curve(start, end), boxes):
            continue
        ways = [way for way in _ways(start, end, boxes, led * SPREAD) if not runs_under(path(start, end, way), boxes)]
        if not ways:
            continue
        led += 1
        _add(found, link[0], min(ways, key=lambda way: _length([start, *way, end])))
    return found if led else {}


def _ways(start: Point, end: Point, boxes: Sequence[Box], shift: float) -> Iterator[list[Point]]:
    """Ways along every lane: out beside the source, along the lane, in beside the target."""
    out, into = start[0] + ASIDE + shift % (2 * SPREAD), end[0] - ASIDE - shift % (2 * SPREAD)
    for _, top, _, bottom in boxes:
        for lane in (top - LANE + shift % (2 * SPREAD), bottom + LANE + shift % (2 * SPREAD)):
            yield [(out, lane), (into, lane)]


def _add(found: dict[str, list], link: int, way: Sequence[Point]) -> None:
    parent = None
    for place in way:
        number = len(found["reroutes"]) + 1
        point = {"id": number, "pos": [round(value) for value in place], "linkIds": [link]}
        found["reroutes"].append(point if parent is None else point | {"parentId": parent})
        parent = number
    found["linkExtensions"].append({"id": link, "parentId": parent})


def _length(points: Sequence[Point]) -> float:
    return sum(((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5 for a, b in pairwise(points))


def drawn_paths(workflow: dict) -> dict[int, list[Point]]:
    """Link -> the points of it on the canvas, reroutes included."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    points = {point["id"]: point for point in workflow["extra"].get("reroutes", [])}
    last = {entry["id"]: entry["parentId"] for entry in workflow["extra"].get("linkExtensions", [])}
    found = {}
    for link in workflow["links"]:
        way, number = [], last.get(link[0])
        while number is not None:
            way.insert(0, tuple(points[number]["pos"]))
            number = points[number].get("parentId")
        found[link[0]] = path(*ends(link, nodes), way)
    return found
