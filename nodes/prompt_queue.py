"""Lines of a prompt file on the host's own queue: one prompt a line, handed over inside the process.

A run of a graph of lists computes node by node, so that nothing is saved before the last image is decoded, and an error
loses all. In the queue each line is a run: its image is saved before the next begins, and an error ends that run alone.
The queue gets a few lines ahead only, because the browser reads all of it at every change.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from comfy_execution.utils import get_executing_context

from ..scale.rows import BadRow, Row
from .host_server import running_server
from .warnings import show

MARK = "sana_native_prompts"  # in the extra data of the prompts that were queued here
AHEAD = 8  # lines waiting in the queue
NO_END = 2**53  # larger than any file's number of rows, and a number in the browser too
SHOWN_LINES = 20  # unreadable ones that are named
QUEUE, LIST = "queue", "list"


@dataclass
class Survey:
    """Rows of a span of the file: the first ones to run, how many there are, and the unreadable ones."""

    chosen: list[Row] = field(default_factory=list)
    total: int = 0
    bad: list[BadRow] = field(default_factory=list)
    bad_total: int = 0

    def sentences(self) -> list[str]:
        """What of the file is left out."""
        found = [f"Skipped {row}" for row in self.bad]
        if self.bad_total > len(self.bad):
            found.append(f"Skipped {self.bad_total - len(self.bad)} more lines that cannot be read.")
        return found


def survey(
    rows: Iterable[Row | BadRow], start: int, end: int, is_saved: Callable[[str], bool], limit: int | None
) -> Survey:
    """Reads rows from index start up to end; chosen are the first `limit` whose image is not saved, None for all."""
    found = Survey()
    for row in rows:
        if row.index >= end:
            break
        if row.index < start:
            continue
        if isinstance(row, BadRow):
            found.bad_total += 1
            if len(found.bad) < SHOWN_LINES:
                found.bad.append(row)
            continue
        found.total += 1
        if (limit is None or len(found.chosen) < limit) and not is_saved(row.name):
            found.chosen.append(row)
    return found


async def choose_rows(
    rows: Iterable[Row | BadRow],
    graph: dict,
    node_id: str | None,
    mode: str,
    span: tuple[int, int],
    is_saved: Callable[[str], bool],
) -> tuple[list[Row], int]:
    """The rows of this run and how many the span has; in mode queue one row, and the next ones are queued.

    span: start and count, 0 for all. Raises ValueError where the span has no rows, or the queue cannot be used.
    """
    start, end = span[0], span[0] + span[1] if span[1] else NO_END
    if mode == LIST:
        found = survey(rows, start, end, is_saved, None)
        tell(found)
        return found.chosen, found.total
    item = running_item()
    job = item[3].get(MARK)
    if job is not None and job["node"] == node_id:
        return await continue_job(rows, item, job, is_saved)
    require_one_queue(graph)
    found = survey(rows, start, end, is_saved, 1 + AHEAD)
    tell(found)
    job = {"id": uuid.uuid4().hex, "node": node_id, "end": end, "total": found.total}
    await put_lines(item, job, found.chosen[1:])
    return found.chosen[:1], found.total


async def continue_job(
    rows: Iterable[Row | BadRow], item: tuple, job: dict, is_saved: Callable[[str], bool]
) -> tuple[list[Row], int]:
    """The row that this run was queued for, unless it was saved since; the next ones are queued."""
    wanted = (row for row in rows if isinstance(row, Row) and job["line"] <= row.index < job["end"])
    own = next(wanted, None)
    waiting = waiting_lines(job["id"])
    last = max(waiting, default=job["line"])
    later = (row for row in wanted if row.index > last and not is_saved(row.name))
    await put_lines(item, job, islice(later, max(AHEAD - len(waiting), 0)))
    if own is None or own.index != job["line"] or is_saved(own.name):
        return [], job["total"]
    show([f"{own.place}: {own.name}"], new=[])
    return [own], job["total"]


def tell(found: Survey) -> None:
    """Shows what is left out. Raises ValueError where nothing is left."""
    sentences = found.sentences()
    if not found.total:
        cure = "write one a line, or set start and count to 0 for the whole file."
        reason = ". " + " ".join(sentences[:3]) if sentences else f": {cure}"
        raise ValueError(f"There is no prompt in this part of the file{reason}")
    if not found.chosen:
        sentences.append(f"All {found.total} images are there already: delete those to generate again.")
    show(sentences)


# The host's queue


def running_item() -> tuple:
    """The prompt that runs now: number, id, graph, extra data, outputs, sensitive data.

    Raises ValueError where no server runs it.
    """
    server, context = running_server(), get_executing_context()
    running = [] if server is None or context is None else list(server.prompt_queue.currently_running.values())
    for item in running:
        if item[1] == context.prompt_id:
            return item
    raise ValueError("The mode queue needs ComfyUI's server, which does not run here: choose list.")


def require_one_queue(graph: dict) -> None:
    """Raises ValueError for a graph with two nodes that would queue each other's lines."""
    queueing = [
        node
        for node in graph.values()
        if node["class_type"] == "SanaNativePromptsFromFile" and node["inputs"].get("mode", QUEUE) == QUEUE
    ]
    if len(queueing) > 1:
        raise ValueError("Two SANA Prompts From File would queue each other's lines: set the mode of one to list.")


def waiting_lines(job_id: str) -> list[int]:
    """Indexes of a job's rows that wait in the queue."""
    queue = running_server().prompt_queue
    with queue.mutex:
        marks = [item[3].get(MARK, {}) for item in queue.queue]
    return [mark["line"] for mark in marks if mark.get("id") == job_id]


async def put_lines(item: tuple, job: dict, rows: Iterable[Row]) -> None:
    """Puts a copy of the running prompt for each row at the end of the queue."""
    for row in rows:
        await put_line(item, job, row.index)


async def put_line(item: tuple, job: dict, index: int) -> None:
    """Puts a copy of the running prompt for one row at the end of the queue, checked by the host as any prompt.

    Raises ValueError where the host refuses it.
    """
    from execution import validate_prompt  # the host's, not there where its parts are used as a library

    server, (_, _, graph, extra_data, outputs, sensitive) = running_server(), item
    node = graph[job["node"]]
    own = node | {"inputs": node["inputs"] | {"start": index, "count": 1}}
    prompt_id, prompt = str(uuid.uuid4()), graph | {job["node"]: own}
    valid, error, good_outputs, _ = await validate_prompt(prompt_id, prompt, list(outputs))
    if not valid:
        raise ValueError(f"ComfyUI refuses to queue the next line: {error['message']} {error['details']}".strip())
    number = server.number
    server.number += 1
    mark = {MARK: job | {"line": index}, "create_time": int(time.time() * 1000)}
    server.prompt_queue.put((number, prompt_id, prompt, extra_data | mark, good_outputs, sensitive))
