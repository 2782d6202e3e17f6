"""Takes the demo's icons out of their package into `demo/icons.json`: `python -m demo.train.icons`. Needs npm once.

The file is in the repository; this is how it was made. The icons are Microsoft's Fluent Emoji (flat), MIT licence
(`demo/LICENSE-fluent-emoji.txt`), as packed by Iconify in `@iconify-json/fluent-emoji-flat`.
"""

import json
import os
import subprocess
import tarfile
from pathlib import Path

from .data import ICONS, RUNS
from .things import THINGS

PACKAGE, VERSION = "@iconify-json/fluent-emoji-flat", "1.2.6"


def fetch_package() -> Path:
    """The package as a .tgz: $FLUENT_EMOJI_TGZ if set, else downloaded once with `npm pack` into the runs folder."""
    if given := os.environ.get("FLUENT_EMOJI_TGZ"):
        return Path(given)
    path = RUNS / f"iconify-json-fluent-emoji-flat-{VERSION}.tgz"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=RUNS, check=True, stdout=subprocess.DEVNULL)
    return path


def main() -> None:
    with tarfile.open(fetch_package()) as package:
        icons = json.load(package.extractfile("package/icons.json"))["icons"]
    content = {
        "source": f"{PACKAGE} {VERSION}",
        "licence": "MIT, Copyright (c) Microsoft Corporation; see LICENSE-fluent-emoji.txt",
        "icons": {icon: icons[icon]["body"] for icon in sorted(thing.icon for thing in THINGS.values())},
    }
    ICONS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
