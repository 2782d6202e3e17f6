"""Text encoding: prompt and negative prompt -> CONDITIONING, and two of them blended."""

from comfy_api.latest import io

from ..models.gemma.text_encoder import encode_prompts, prompt_notices
from ..models.runtime.blending import blend
from .warnings import show


class SanaNativeGemmaEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeGemmaEncode",
            display_name="SANA Gemma Encode",
            category="model/conditioning/sana",
            description="Encodes prompt and negative prompt as the model was trained: for SANA with an instruction "
            "before the prompt.",
            search_aliases=["sana prompt", "gemma text encode", "clip text encode"],
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="Gemma-2, Gemma-1 for Lumina-Next, or T5-XXL for PixArt, from SANA Gemma Loader."
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to generate. The first 299 tokens count, about 200 English words, or 255 for "
                    "Lumina-Next; what is cut off is shown on the node.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What to avoid; acts when the sampler's cfg is above 1. SANA-Sprint needs SANA NAG for it.",
                ),
                io.Combo.Input(
                    "instruction",
                    options=["on", "off", "custom"],
                    default="on",
                    optional=True,
                    tooltip="The instruction SANA was trained with, put before the prompt. off: plain prompt, for "
                    "LoRAs trained without it. custom: the text below. Lumina-Next and PixArt have none.",
                ),
                io.String.Input(
                    "custom_instruction",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="Text put before the prompt when instruction is custom, without any separator added. Link "
                    "a text node for more than one line.",
                ),
                io.Boolean.Input(
                    "lower_case",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Lowers the case of both prompts, as diffusers does; the authors' own pipelines do not.",
                ),
                io.Boolean.Input(
                    "weights",
                    default=False,
                    optional=True,
                    tooltip="Reads weights as in (red:1.4) in both prompts: red then counts as 1.4 times in the text. "
                    "off: plain text. T5 always reads them, in ComfyUI's own way.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt: 300 tokens with their mask, or Lumina-Next's and PixArt's without.",
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt: 300 tokens with their mask."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,
        prompt: str,
        negative_prompt: str = "",
        instruction: str = "on",
        custom_instruction: str = "",
        lower_case: bool = False,
        weights: bool = False,
    ) -> io.NodeOutput:
        own_text = {"on": None, "off": "", "custom": custom_instruction}[instruction]
        notices = prompt_notices(clip, prompt, negative_prompt, own_text, lower_case, weights)
        show(notices, new=[])  # the tokenizer logs them, for every node that encodes
        return io.NodeOutput(*encode_prompts(clip, prompt, negative_prompt, own_text, lower_case, weights))


class SanaNativeBlendPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeBlendPrompts",
            display_name="SANA Blend Prompts",
            category="model/conditioning/sana",
            description="Blends two prompts inside the attention: every token of both counts by its prompt's share, in "
            "one pass.",
            search_aliases=["prompt blending", "conditioning average", "mix prompts", "prompt interpolation"],
            inputs=[
                io.Conditioning.Input("prompt_a", tooltip="The first prompt; its guidance and area stay."),
                io.Conditioning.Input("prompt_b", tooltip="The second prompt, of any length."),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of prompt_b: 0 is prompt_a alone, 1 prompt_b alone.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="blend", tooltip="One text that is both prompts.")],
        )

    @classmethod
    def execute(cls, prompt_a, prompt_b, share: float = 0.5) -> io.NodeOutput:
        return io.NodeOutput(blend(prompt_a, prompt_b, share))
