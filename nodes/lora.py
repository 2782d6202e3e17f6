"""The LoRA loader node: a LoRA of any trainer -> a changed MODEL."""

import folder_paths
from comfy_api.latest import io

from ..models.lora.loader import load_lora
from ..models.registry import describe_file


class SanaNativeLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeLoraLoader",
            display_name="SANA LoRA Loader",
            category="model/loaders",
            description="Applies a LoRA, LoHa, LoKr or DoRA trained on SANA or PixArt, whatever trainer wrote it.",
            search_aliases=["lora", "load lora", "sana lora", "dora", "lokr", "loha", "lycoris"],
            inputs=[
                io.Model.Input("model", tooltip="The model of SANA Model Loader, or of another LoRA loader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="File in models/loras. The log says how many of its keys were applied.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="How strongly the model is changed: 1 as trained, 0 not at all, negative the other way.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The changed model; the one that came in stays as it is.")],
        )

    @classmethod
    def execute(cls, model, lora_name: str, strength_model: float = 1.0) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        return io.NodeOutput(load_lora(model, path, strength_model, describe_file))
