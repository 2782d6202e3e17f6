"""A network's pass as one CUDA graph for each signature of its inputs, replayed in one launch in place of hundreds.

A graph computes with fixed addresses. So inputs are copied into buffers of its own, the result is copied out, and a
recording is valid while the weights lie where they lay when it was made: it reads their values of the moment. What
other nodes put into the pass, and weights that the host brings during it, run as usual. Tried on a stand-in of a GPU.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from .layer_weights import changes_weights
from .weight_fingerprint import is_changed, is_plain

logger = logging.getLogger(__name__)

MOST = 4  # graphs of one network: positive and negative text of two image sizes
KEY = "sana_native_cuda_graphs"
# Options of the host that act outside the network or tell it nothing; any other one might change the pass.
HARMLESS = frozenset({"callbacks", "cond_or_uncond", "sample_sigmas", "sigmas", "uuids", "wrappers"})
CACHES: "weakref.WeakSet[GraphCache]" = weakref.WeakSet()


class CudaRecorder:
    """Captures calls on a CUDA device. The graphs share one memory pool, as no two are replayed at once."""

    device_type = "cuda"

    def __init__(self):
        self.pool = None

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        """A replay of the call, and the tensor that each replay writes."""
        with torch.cuda.device(device):
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Threads of the host and of other packs may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                out = run()
        return graph.replay, out

    def free_memory(self, device: torch.device) -> int:
        """Bytes that nobody holds; of any allocator, because it asks the driver."""
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]

    def release(self) -> None:
        """Called when no graph is left: its pool ends with them."""
        self.pool = None


class WeightPlaces(NamedTuple):
    """Where the weights of a network lie, in which format, and the modules that compute with them."""

    places: list[tuple]
    modules: list[weakref.ref]

    @classmethod
    def of(cls, network: nn.Module) -> "WeightPlaces":
        tensors = (*network.parameters(), *network.buffers())
        places = [(one.data_ptr(), one.dtype, one.device, one.shape, one.stride()) for one in tensors]
        return cls(places, [weakref.ref(module) for module in network.modules()])

    def matches(self, network: nn.Module) -> bool:
        now = WeightPlaces.of(network)
        return self.places == now.places and [one() for one in self.modules] == [one() for one in now.modules]


@dataclass
class Recording:
    """One captured pass. inputs: the buffers it reads, by name. out: what a replay writes."""

    replay: Callable[[], None]
    inputs: dict[str, Tensor]
    out: Tensor

    def run(self, inputs: Mapping[str, Tensor | None]) -> Tensor:
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        self.replay()
        return self.out.clone()  # the next replay overwrites it


class GraphCache:
    """The graphs of one network, at most MOST, the one unused for longest being dropped.

    The first pass of a signature runs as usual, in which libraries choose their kernels; the second is captured.
    """

    def __init__(self, recorder: Any = None):
        """recorder: as CudaRecorder; a test gives one that needs no GPU."""
        self.recorder = recorder or CudaRecorder()
        self.recordings: OrderedDict[tuple, Recording] = OrderedDict()
        self.weights: WeightPlaces | None = None
        self.warm, self.refused, self.told = set(), set(), set()
        self.held, self.device = 0, None  # bytes of the pool and the buffers, and where
        CACHES.add(self)

    def __deepcopy__(self, memo: dict) -> "GraphCache":
        return GraphCache(type(self.recorder)())  # of a copied network, whose weights lie elsewhere

    def run(
        self,
        network: nn.Module,
        forward: Callable[..., Tensor],
        inputs: Mapping[str, Tensor | None],
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """forward(**inputs), replayed where that gives the same.

        forward: computes from nothing but these inputs, the network and options. options: of the host and other nodes.
        """
        reason = find_obstacle(network, inputs, options or {}, self.recorder.device_type)
        if reason is not None:
            self.tell(reason)
            return forward(**inputs)
        if self.weights is not None and not self.weights.matches(network):
            self.clear()
        signature = signature_of(inputs)
        if signature in self.recordings:
            self.recordings.move_to_end(signature)
            return self.recordings[signature].run(inputs)
        if (
            signature in self.warm
            and signature not in self.refused
            and self.capture(network, forward, signature, inputs)
        ):
            return self.recordings[signature].run(inputs)
        out = forward(**inputs)
        self.warm.add(signature)
        return out

    def capture(self, network: nn.Module, forward: Callable, signature: tuple, inputs: Mapping) -> bool:
        """Whether a recording of the signature could be made; if not, it is never tried again."""
        buffers = {name: one.clone() for name, one in inputs.items() if one is not None}
        device = self.device = next(iter(buffers.values())).device
        while len(self.recordings) >= MOST:
            self.recordings.popitem(last=False)
        try:
            before = self.recorder.free_memory(device)
            run = partial(forward, **(dict.fromkeys(inputs) | buffers))
            replay, out = self.recorder.record(run, device)
            replay()  # some allocators take the memory of a graph at its first run
            self.held += max(before - self.recorder.free_memory(device), 0)
        except Exception as error:  # noqa: BLE001 - whatever cannot be captured can still be computed
            self.refused.add(signature)
            if not self.recordings:
                self.clear()
            shapes = ", ".join(" x ".join(map(str, one.shape)) for one in buffers.values())
            logger.warning(
                "SANA: a pass with inputs of %s cannot be captured as a CUDA graph (%s), so such passes run as usual",
                *(shapes, " ".join(f"{type(error).__name__}: {error}".split())),
            )
            return False
        self.recordings[signature] = Recording(replay, buffers, out)
        self.weights = WeightPlaces.of(network)
        return True

    def clear(self) -> None:
        """Drops the graphs; their memory is the device's again when the host empties torch's cache."""
        self.recordings.clear()
        self.weights, self.held = None, 0
        self.recorder.release()

    def tell(self, reason: str) -> None:
        if reason not in self.told:
            self.told.add(reason)
            logger.info("SANA: cuda_graphs is on, but %s: such passes run as usual", reason)


def signature_of(inputs: Mapping[str, Tensor | None]) -> tuple:
    """What a recording is made for: inputs that are there, their shapes, formats and layouts, and torch's modes."""
    modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cuda")
    kinds = ((one.shape, one.dtype, one.stride(), one.device) if one is not None else None for one in inputs.values())
    return (*modes, *zip(inputs, kinds, strict=True))


def find_obstacle(network: nn.Module, inputs: Mapping, options: Mapping[str, Any], device_type: str) -> str | None:
    """Why a pass has to run as usual, as half a sentence; None if it can be replayed."""
    device = next(one.device for one in inputs.values() if one is not None)
    if device.type != device_type or torch.version.hip:
        return f"the model does not run on an NVIDIA card but on {'AMD' if torch.version.hip else device.type}"
    if torch.is_grad_enabled():
        return "gradients are wanted, as in training"
    if any(one.device != device for one in inputs.values() if one is not None):
        return "its inputs lie on several devices"
    for name, value in options.items():
        if name not in HARMLESS and not is_empty(value):
            return f"another node or ComfyUI sets {name}"
    return find_weight_obstacle(network, device)


def find_weight_obstacle(network: nn.Module, device: torch.device) -> str | None:
    for module in network.modules():
        if hasattr(module, "weight_function") and changes_weights(module):
            return "ComfyUI changes weights during the pass, as it does with a LoRA when memory is short"
        if is_changed(module) or module._compiled_call_impl is not None:
            return "another node has hooked, replaced or compiled a layer"
    for one in (*network.parameters(), *network.buffers()):
        if not is_plain(one):
            return "its weights are quantized"
        if one.device != device:
            return "not all of its weights are on the device"
    return None


def is_empty(value: Any) -> bool:
    """Whether an option says nothing; of dicts within dicts, too."""
    return all(map(is_empty, value.values())) if isinstance(value, Mapping) else value is None or value is False


def use_graphs(patcher: ModelPatcher) -> bool:
    """Gives a cache to the networks of a patcher's model that can have one, and empties it when they are unloaded.

    False where there is none, such as on a CPU.
    """
    networks = [module for module in patcher.model.modules() if hasattr(type(module), "graphs")]
    for network in networks:
        network.graphs = GraphCache()
    if not networks:
        logger.info("SANA: cuda_graphs is on, but has no effect where the model does not run on an NVIDIA card")
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, release_graphs)
    return bool(networks)


def release_graphs(patcher: ModelPatcher, unpatch_all: bool) -> None:
    """The host's callback. unpatch_all: False when a clone takes over, with the weights where they are."""
    caches = (getattr(module, "graphs", None) for module in patcher.model.modules())
    for cache in caches if unpatch_all else ():
        if cache is not None:
            cache.clear()


def held_memory(device: torch.device) -> int:
    """Bytes that graphs hold on a device and the host takes for free."""
    return sum(cache.held for cache in CACHES if cache.device == device)
