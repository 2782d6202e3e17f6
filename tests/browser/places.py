"""Where things are for the browser tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "output" / "browser"
PACK = "sana-native"  # the pack's folder in custom_nodes, as the fixture `web_server` names it
