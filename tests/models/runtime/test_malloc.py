"""The process's malloc is left alone where it is not glibc's."""

import sys

import torch
from sana_native.models.runtime.cpu.malloc import raise_mmap_threshold


def test_nothing_is_allocated_on_other_systems(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "empty", lambda *args, **_: calls.append(args))
    for platform, count in (("win32", 0), ("darwin", 0), ("linux", 1)):
        monkeypatch.setattr(sys, "platform", platform)
        raise_mmap_threshold()
        assert len(calls) == count


def test_a_default_device_of_another_kind_does_not_take_the_block(monkeypatch):
    """As when a network is built without weights: a block on "meta" would change nothing."""
    devices, empty = [], torch.empty

    def recorded(*args, **kwargs):
        block = empty(*args, **kwargs)
        devices.append(block.device.type)
        return block

    monkeypatch.setattr(torch, "empty", recorded)
    monkeypatch.setattr(sys, "platform", "linux")
    with torch.device("meta"):
        raise_mmap_threshold()
    assert devices == ["cpu"]
