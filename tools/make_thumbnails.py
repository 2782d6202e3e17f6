"""Writes workflows/*.jpg, what the host shows of each workflow in its list of templates.

python -m tools.make_thumbnails           needs a running environment (see tools/host.py)

A graph that needs no download draws its own: the picture that a first run gives. One of a released model, which cannot
run here, is shown as a drawing of the graph itself: a made-up picture would promise what it does not know.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from PIL import Image

from .comfy_server import ComfyServer
from .graph_drawing import draw_graph
from .host import prepare_base
from .make_workflows import ROOT
from .workflow import to_api
from .workflow_graphs import graphs

QUALITY = 88
# What stands above the drawing of a graph.
CAPTIONS = {
    "sana_txt2img": ("SANA", "text to image"),
    "sana_txt2img_ksampler": ("SANA", "stock nodes only"),
    "sana_2k_txt2img": ("SANA 2K", "2048 x 2048 px"),
    "sana_4k_txt2img": ("SANA 4K", "4096 x 4096 px, exact tiles"),
    "sana_img2img": ("SANA", "image to image"),
    "sana_seed_batch": ("SANA", "a batch of four from one seed"),
    "sana_lora": ("SANA", "with a LoRA"),
    "sana_prompt_enhance": ("SANA", "Gemma writes the prompt out"),
    "sana_sprint_txt2img": ("SANA-Sprint", "1 to 4 steps"),
    "sana_sprint_realtime": ("SANA-Sprint", "draws while you type"),
}
FOLDER = ROOT / "workflows"


def read_workflow(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def thumbnail(name: str, server: ComfyServer) -> Image.Image:
    """The thumbnail of a workflow; `server` draws it where the pack brings the model."""
    workflow = read_workflow(name)
    if not graphs()[name].runs_at_once:
        return draw_graph(workflow, *CAPTIONS[name])
    shown = server.run(to_api(workflow, server.object_info())).images()[-1]
    return Image.open(io.BytesIO(server.fetch_image(shown))).convert("RGB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(prepare_base(Path(folder)), cpu=True) as server:
        for name in graphs():
            thumbnail(name, server).save(FOLDER / f"{name}.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
