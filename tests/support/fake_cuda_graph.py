"""A stand-in of a GPU for CUDA graphs: a replay computes again from the buffers of its capture, to the same tensor."""

import weakref

from sana_native.models.runtime import cuda_graph

POOL = 1000  # bytes that a capture takes of the stand-in


class FakeRecorder:
    """As CudaRecorder, on a CPU. failing: raised by a capture."""

    device_type = "cpu"

    def __init__(self, failing: Exception | None = None):
        self.failing, self.captures, self.replays, self.free, self.released = failing, 0, 0, 10**6, 0

    def record(self, run, device):
        assert device.type == "cpu"
        self.captures += 1
        if self.failing is not None:
            raise self.failing
        self.free -= POOL
        out = run().clone()

        def replay():
            self.replays += 1
            out.copy_(run())

        return replay, out

    def free_memory(self, _device):
        return self.free

    def release(self):
        self.released += 1


def record_on_the_cpu(monkeypatch) -> None:
    """Graphs are recorded by a stand-in, and those of other tests, which may not be collected yet, do not count."""
    monkeypatch.setattr(cuda_graph, "CudaRecorder", FakeRecorder)
    monkeypatch.setattr(cuda_graph, "CACHES", weakref.WeakSet())
