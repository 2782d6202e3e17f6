"""A real ComfyUI server as a context manager: start, queue prompts, follow them, fetch images, always stop.

Runs inside the host's environment (torch and aiohttp are there). Used by `make demo` and by the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
LOG_LINES_SHOWN = 15
# Run in place of the server, which it becomes: the kernel ends that when the thread that started it ends, however that
# ends. A parent that ended before is told by its number. (prctl(2): PR_SET_PDEATHSIG)
GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

OnProgress = Callable[[str, int, int], None]
"""Called with node id, steps done and steps in total."""


class ServerError(RuntimeError):
    """The server did not start, refused a prompt, or a node failed; the message is one sentence."""


class PromptRefused(ServerError):
    """The host does not take the prompt, and will not take it again."""


class NodeFailed(ServerError):
    """A node raised an error. node: its title and class."""

    def __init__(self, node: str, message: str):
        super().__init__(f"{node} failed: {message}")
        self.node = node


class PromptTimeout(ServerError):
    """The prompt took longer than it was given, and was interrupted."""


class ServerEnded(ServerError):
    """The server's process ended while a prompt ran."""


@dataclass
class Result:
    """What a finished prompt left: outputs as in the host's history, and seconds by node id (none for cached nodes)."""

    prompt_id: str
    outputs: dict[str, dict]
    seconds: dict[str, float] = field(default_factory=dict)

    def images(self) -> list[dict]:
        """Return every saved image as the host describes it: filename, subfolder, type."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class ComfyServer:
    """A ComfyUI server on a free local port, its data in `base_directory` only.

    `host` is the checkout (default: COMFYUI_PATH, else `.comfyui/ComfyUI`). `cpu=None` asks torch for a CUDA device.
    The log goes to `server.log` in the base directory. `dies_with_parent` (Linux): a killed parent takes it along.
    """

    def __init__(
        self,
        base_directory: str | Path,
        extra_args: Sequence[str] = (),
        *,
        host: str | Path | None = None,
        python: str | Path = sys.executable,
        cpu: bool | None = None,
        boot_seconds: float = 180,
        dies_with_parent: bool = False,
        environment: Mapping[str, str] | None = None,
    ):
        self.base_directory = Path(base_directory)
        self.host = Path(host or os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
        self.python, self.cpu, self.boot_seconds, self.extra_args = python, cpu, boot_seconds, list(extra_args)
        self.dies_with_parent, self.environment = dies_with_parent, dict(environment or {})
        self.log_file = self.base_directory / "server.log"
        self.port = 0
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers.  Raises: ServerError with the end of the log."""
        for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
            (self.base_directory / name).mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        with open(self.log_file, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.host,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **self.environment},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int | None:
        """Number of the server's process, None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def stop(self) -> None:
        """End the server and everything it started; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        for send in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            try:
                if os.name == "nt":
                    process.kill()
                else:
                    os.killpg(process.pid, send)
            except ProcessLookupError:
                pass
            try:
                process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                continue

    def log(self) -> str:
        """Return what the server has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.is_file() else ""

    def object_info(self) -> dict:
        """Return the host's description of every node."""
        return self._get_json("/object_info")

    def system_stats(self) -> dict:
        """Return the host's version and devices."""
        return self._get_json("/system_stats")

    def history(self, prompt_id: str) -> dict:
        """Return the host's record of a prompt, or an empty dict while it has none."""
        return self._get_json(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self) -> None:
        """Stop the prompt that is running now."""
        self._request("/interrupt", {})

    def forget(self) -> None:
        """Empty the host's record of finished prompts, which it keeps in memory."""
        self._request("/history", {"clear": True})

    def free_memory(self) -> None:
        """Unload all models and empty the caches."""
        self._request("/free", {"unload_models": True, "free_memory": True})

    def is_idle(self) -> bool:
        """Say whether no prompt runs or waits."""
        queue = self._get_json("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    def fetch_image(self, image: dict) -> bytes:
        """Return the file behind one entry of `Result.images()`."""
        return self._request("/view?" + urllib.parse.urlencode(image))

    def queue(self, prompt: dict, client_id: str = "") -> str:
        """Queue an API prompt and return its id.

        Raises: PromptRefused naming the node and input the host refused, also where it would run the other outputs.
        """
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        try:
            answer = json.loads(self._request("/prompt", body))
        except urllib.error.HTTPError as error:
            raise PromptRefused(_refusal(json.loads(error.read()), prompt)) from None
        if answer.get("node_errors"):
            # The host has queued the outputs without a fault; the caller would take them for all.
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            self._request("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptRefused(_refusal(answer, prompt))
        return answer["prompt_id"]

    def run(self, prompt: dict, on_progress: OnProgress | None = None, timeout: float | None = None) -> Result:
        """Queue `prompt`, follow it to its end and return its result.

        Raises: ServerError when the host refuses it, a node fails, it is interrupted, the server dies, or `timeout`
        seconds pass.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._follow(prompt, on_progress), timeout))
        except asyncio.TimeoutError:
            self.interrupt()
            took = f"The prompt did not end in {timeout:g} s and was stopped"
            raise PromptTimeout(f"{took}; give it more time.") from None

    async def _follow(self, prompt: dict, on_progress: OnProgress | None) -> Result:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            # Connected before queueing: a fast prompt would finish unseen.
            async with session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket_:
                prompt_id = await asyncio.to_thread(self.queue, prompt, client_id)
                watch = _Watch(prompt, prompt_id, on_progress)
                async for message in socket_:
                    if message.type == aiohttp.WSMsgType.TEXT and watch.see(json.loads(message.data)):
                        break
                else:
                    raise ServerEnded(f"The server ended during the prompt; its log ends with:\n{self._log_end()}")
        return Result(prompt_id, await asyncio.to_thread(self._outputs, prompt_id), watch.seconds)

    def _outputs(self, prompt_id: str) -> dict[str, dict]:
        while not (record := self.history(prompt_id)):  # written just after the last message
            time.sleep(0.02)
        return record["outputs"]

    def _command(self) -> list[str]:
        command = [
            str(self.python),
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base_directory.resolve()),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-api-nodes",
            "--disable-auto-launch",
        ]
        if not has_cuda() if self.cpu is None else self.cpu:
            command.append("--cpu")
        command += self.extra_args
        guarded = self.dies_with_parent and sys.platform == "linux"
        return [sys.executable, "-ISc", GUARD, str(os.getpid()), *command] if guarded else command

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.boot_seconds
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise ServerError(f"ComfyUI ended with code {code} at start; its log ends with:\n{self._log_end()}")
            try:
                self._request("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise ServerError(f"ComfyUI gave no answer in {self.boot_seconds:g} s; its log ends with:\n{self._log_end()}")

    def _log_end(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_LINES_SHOWN:])

    def _get_json(self, path: str) -> dict:
        return json.loads(self._request(path))

    def _request(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        # No proxy: the server is on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.read()


class _Watch:
    """Reads the messages about one prompt: keeps the time of each node, reports progress, raises on failure."""

    def __init__(self, prompt: dict, prompt_id: str, on_progress: OnProgress | None):
        self.prompt, self.prompt_id, self.on_progress = prompt, prompt_id, on_progress
        self.seconds: dict[str, float] = {}
        self._node: str | None = None
        self._since = 0.0

    def see(self, message: dict) -> bool:
        """Take one message; return True when the prompt is done."""
        kind, data = message["type"], message.get("data", {})
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "executing":
            self._switch_to(data["node"])
        elif kind == "progress" and self.on_progress:
            self.on_progress(data["node"], data["value"], data["max"])
        elif kind == "execution_error":
            name = node_name(self.prompt, data["node_id"])
            raise NodeFailed(name, data["exception_message"].strip())
        elif kind == "execution_interrupted":
            raise ServerError(f"The prompt was interrupted in {node_name(self.prompt, data['node_id'])}.")
        return kind == "executing" and data["node"] is None

    def _switch_to(self, node: str | None) -> None:
        now = time.perf_counter()
        if self._node is not None:
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


def has_cuda() -> bool:
    """Say whether torch finds a CUDA device."""
    import torch  # slow, and not needed by callers who know the answer

    return torch.cuda.is_available()


def node_name(prompt: dict, node_id: str) -> str:
    """Return a node's title and class as a user knows them from the graph."""
    node = prompt.get(node_id, {})
    kind, title = node.get("class_type", "unknown"), node.get("_meta", {}).get("title")
    return f"{title} ({kind})" if title and title != kind else f"Node {node_id} ({kind})"


def _refusal(answer: dict, prompt: dict) -> str:
    """Turn the host's answer to a refused prompt into one sentence."""
    for node_id, node in answer.get("node_errors", {}).items():
        for error in node["errors"]:
            return f"The host refused {node_name(prompt, node_id)}: {error['message']}: {error['details']}"
    error = answer.get("error", {})
    details = error.get("details") or ""
    return f"The host refused the prompt: {error.get('message', 'no reason given')}{': ' + details if details else ''}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
