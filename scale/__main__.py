"""`python custom_nodes/sana-native/scale run ...`, from any directory and under any name of the pack's folder."""

import sys
import types
from pathlib import Path

if __name__ == "__main__":
    # The pack is a package only inside ComfyUI; its modules import one another relatively, so it gets a name here.
    ROOT = Path(__file__).absolute().parent.parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").absolute() not in (ROOT, ROOT / "scale")]
    sys.modules["sana_native"] = types.ModuleType("sana_native")
    sys.modules["sana_native"].__path__ = [str(ROOT)]
    from sana_native.scale.command import main

    sys.exit(main(sys.argv[1:]))
