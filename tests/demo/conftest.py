"""The demo's scripts for its tests."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo():
    """The demo's modules; the package is found from the root, which must not stay on sys.path."""
    sys.path.append(str(ROOT))
    try:
        import demo.generate
        import demo.judge
        import demo.measure
        import demo.measure_finetune
        import demo.measure_training
        import demo.train.captions
        import demo.train.controlnet
        import demo.train.data  # noqa: F401 - all of them are used through the package
    finally:
        sys.path.remove(str(ROOT))
    return sys.modules["demo"]
