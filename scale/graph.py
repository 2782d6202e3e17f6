"""A workflow and a row of a prompt file make the prompt that a server runs.

`Title.input={field}` puts a field of the row into the input of the one node of that title or class; `Title.input=text`
sets the same value for all rows. Pure: nothing of the host.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.sana.resolution import bin_sides
from ..tools.workflow import WorkflowError, sole_names, to_api, typed
from ..tools.workflow_blueprint import unfold
from .rows import Row

ROW_FIELDS = ("prompt", "negative", "seed", "width", "height", "steps", "cfg", "name", "index")
BATCH_FIELDS = ("prompts", "seeds", "count")
FIELD = re.compile(r"\{(" + "|".join(ROW_FIELDS + BATCH_FIELDS) + r")\}")
FORMATS = ("png", "jpg", "webp")
SAVE_IMAGE, SAVE_NAMED = "SaveImage", "SanaNativeSaveNamed"
DROPPED = {"PreviewImage"}  # writes files that nobody fetches
QUEUES_ITSELF = "SanaNativePromptsFromFile"
FOLDER = "scale"  # below the server's output folder


@dataclass(frozen=True)
class Options:
    """What every picture of a job has in common.

    size: side of the trained square that a row's ratio is binned for. quality: of jpg and webp. batch: most rows of a
    run.
    """

    seed_base: int = 0
    size: int = 1024
    format: str = "png"
    quality: int = 92
    batch: int = 1


@dataclass(frozen=True)
class Target:
    """An input of a node, and the text that a row's fields are put into."""

    node: str
    name: str
    text: str


def read_workflow(path: str | Path) -> dict:
    """A workflow as saved, or as exported for the API. Raises: WorkflowError for anything else."""
    path = Path(path)
    try:
        workflow = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read ({error.strerror}): give the JSON file of a workflow.") from None
    except ValueError:
        raise WorkflowError(f"{path} is no JSON: save the workflow again in ComfyUI.") from None
    if isinstance(workflow, dict) and (isinstance(workflow.get("nodes"), list) or is_api(workflow)):
        return workflow
    raise WorkflowError(f"{path} holds no workflow: save one in ComfyUI, or export it for the API.")


def is_api(workflow: dict) -> bool:
    """Whether it is a prompt, node id -> class and inputs, and no graph as saved."""
    return bool(workflow) and all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in workflow.values()
    )


def api_of(workflow: dict, object_info: dict) -> dict:
    """The prompt of a workflow in either form. Raises: WorkflowError where the host lacks a node, or parts are torn."""
    try:
        return copy.deepcopy(workflow) if is_api(workflow) else to_api(unfold(workflow), object_info)
    except (LookupError, TypeError, AttributeError) as error:
        raise WorkflowError(f"The workflow is torn ({error!r}): save it again in ComfyUI.") from error


class Template:
    """A prompt with the places that rows fill.

    assignments: `Title.input=value` each. Raises: WorkflowError where one leads nowhere, no field of the rows is used,
    or nothing is saved.
    """

    def __init__(self, prompt: dict, assignments: Sequence[str], options: Options):
        self.options = options
        self.prompt = {key: node for key, node in prompt.items() if node["class_type"] not in DROPPED}
        for node in self.prompt.values():
            if node["class_type"] == QUEUES_ITSELF:
                raise WorkflowError(
                    "The workflow holds SANA Prompts From File, which queues lines of its own: take it out, and fill "
                    "the prompt with --set."
                )
        self.savers = [key for key, node in self.prompt.items() if node["class_type"] in (SAVE_IMAGE, SAVE_NAMED)]
        if not self.savers:
            raise WorkflowError("The workflow saves nothing: add a Save Image node.")
        self.targets = [self._target(text) for text in assignments]
        self.fields = {field for target in self.targets for field in FIELD.findall(target.text)}
        self._require_fields()
        for key in self.savers:
            self.prompt[key] = self._saver(self.prompt[key])

    def _require_fields(self) -> None:
        if not self.fields & {"prompt", "prompts"}:
            raise WorkflowError('No --set takes the prompt: add one such as --set "SANA Gemma Encode.prompt={prompt}".')
        if self.options.batch > 1 and not set(BATCH_FIELDS) <= self.fields:
            raise WorkflowError(
                "A batch needs the fields {prompts}, {seeds} and {count}: set the prompts of SANA Prompt Batch, the "
                "seeds of SANA Seeds and the latent's batch_size to them, or leave --batch out."
            )

    def _target(self, text: str) -> Target:
        place, separator, value = text.partition("=")
        if not separator or "." not in place:
            raise WorkflowError(f'--set "{text}" is no assignment: write it as "Title.input={{prompt}}".')
        unknown = [name for name in re.findall(r"\{(\w*)\}", value) if not FIELD.fullmatch(f"{{{name}}}")]
        if unknown:
            known = ", ".join(ROW_FIELDS + BATCH_FIELDS)
            raise WorkflowError(f'--set "{text}" names the unknown field {{{unknown[0]}}}: known are {known}.')
        titles = [place[: match.start()] for match in re.finditer(r"\.", place)]
        named = [(title, self._nodes(title)) for title in titles]
        title, nodes = next((pair for pair in reversed(named) if pair[1]), named[-1])
        if len(nodes) != 1:
            names = ", ".join(sole_names(self.prompt))
            raise WorkflowError(
                f"{len(nodes)} nodes are called {title}, expected one; give a title or class of one: {names}."
            )
        name, inputs = place[len(title) + 1 :], self.prompt[nodes[0]]["inputs"]
        if name not in inputs:
            raise WorkflowError(f"{title} has no input {name}; it has {', '.join(inputs)}.")
        if not FIELD.search(value):
            inputs[name] = _like(inputs[name], value, text)
        return Target(nodes[0], name, value)

    def _nodes(self, title_or_class: str) -> list[str]:
        return [
            key
            for key, node in self.prompt.items()
            if title_or_class in (key, node["class_type"], node.get("_meta", {}).get("title"))
        ]

    def _saver(self, node: dict) -> dict:
        """A node that saves in the job's format; the pack's own, where the host's writes no such files."""
        if node["class_type"] == SAVE_IMAGE and self.options.format == "png":
            return node
        own = {"name": "", "folder": FOLDER, "format": self.options.format, "skip_existing": False}
        inputs = {"images": node["inputs"]["images"], **own, "quality": self.options.quality}
        return {"class_type": SAVE_NAMED, "inputs": inputs, "_meta": node.get("_meta", {})}

    def fill(self, rows: Sequence[Row]) -> dict:
        """The prompt of a row, or of several that `groups` put together; its files are named for the first's index."""
        prompt = {key: {**node, "inputs": dict(node["inputs"])} for key, node in self.prompt.items()}
        values = self.values(rows[0]) | {
            "prompts": "\n".join(" ".join(row.prompt.split()) for row in rows),
            "seeds": ", ".join(str(row.seed_from(self.options.seed_base)) for row in rows),
            "count": len(rows),
        }
        for target in self.targets:
            whole = FIELD.fullmatch(target.text)
            if whole is None and FIELD.search(target.text):
                value = FIELD.sub(lambda match: str(_or_nothing(values[match[1]])), target.text)
                prompt[target.node]["inputs"][target.name] = value
            elif whole and values[whole[1]] is not None:
                prompt[target.node]["inputs"][target.name] = values[whole[1]]
        for number, key in enumerate(self.savers):
            name = f"{rows[0].index:09}" + (f"-{number}" if number else "")
            own = {"filename_prefix": f"{FOLDER}/{name}"} if "filename_prefix" in prompt[key]["inputs"] else {}
            prompt[key]["inputs"] |= own or {"name": name}
        return prompt

    def values(self, row: Row) -> dict[str, object]:
        """Field -> value of a row; None leaves the workflow's own."""
        sides = (row.width, row.height)
        if row.width is None and row.aspect is not None:
            sides = bin_sides(self.options.size, *row.aspect)
        return {
            "prompt": row.prompt,
            "negative": row.negative or None,
            "seed": row.seed_from(self.options.seed_base),
            "width": sides[0],
            "height": sides[1],
            "steps": row.steps,
            "cfg": row.cfg,
            "name": row.name,
            "index": row.index,
        }

    @property
    def sets_seed(self) -> bool:
        return bool(self.fields & {"seed", "seeds"})

    def seed_of(self, row: Row) -> int | None:
        """The seed that a row is drawn with; None where that is the workflow's own."""
        return row.seed_from(self.options.seed_base) if self.sets_seed else None

    def groups(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Rows that one run can take: equal in every field that is one for a batch, `batch` of them at most."""
        if self.options.batch == 1:
            yield from ([row] for row in rows)
            return
        waiting: dict[str, list[Row]] = {}
        for row in rows:
            values = self.values(row)
            key = json.dumps([values[field] for field in sorted(self.fields & set(ROW_FIELDS))])
            waiting.setdefault(key, []).append(row)
            if len(waiting[key]) == self.options.batch:
                yield waiting.pop(key)
        yield from waiting.values()

    def unused(self, rows: Iterable[Row]) -> list[str]:
        """Settings that rows give and no --set takes."""
        given = set()
        for row in rows:
            given |= {name for name in ("negative", "steps", "cfg") if getattr(row, name) not in (None, "")}
            given |= {"width", "height"} if row.width or row.aspect else set()
            given |= {"seed"} if row.seed is not None and not self.sets_seed else set()
        return sorted(given - self.fields)

    def digest(self) -> str:
        """Fingerprint of the graph with what rows fill blanked."""
        blank = copy.deepcopy(self.prompt)
        for target in self.targets:
            blank[target.node]["inputs"][target.name] = target.text
        for node in blank.values():
            node.pop("_meta", None)
            node.pop("is_changed", None)
        return hashlib.sha256(json.dumps(blank, sort_keys=True).encode()).hexdigest()


def _or_nothing(value: object) -> object:
    return "" if value is None else value


def _like(old: object, text: str, assignment: str) -> object:
    """A text as the kind of value that an input has now; links become the text itself."""
    try:
        return typed(text, old)
    except WorkflowError as error:
        raise WorkflowError(f'--set "{assignment}": {error}') from None
