"""Every released file of the families, and files of other models, with the answer that the loaders give.

Tensors have their true names and shapes and one number each, so that nothing as large as a model is written or held.
"""

import re
from collections.abc import Callable, Mapping
from math import prod

import comfy.ldm.models.autoencoder
import comfy.ldm.pixart.pixartms
import diffusers
import torch
import transformers
from sana_native.models.autoencoder_kl import loader as kl
from sana_native.models.controlnet import detection as controlnet_detection
from sana_native.models.controlnet import loader as controlnet
from sana_native.models.dc_ae import detection as dc_ae_detection
from sana_native.models.dc_ae import loader as dc_ae
from sana_native.models.files import quantized
from sana_native.models.files.family import detect
from sana_native.models.files.reader import Checkpoint
from sana_native.models.gemma import detection as gemma_detection
from sana_native.models.gemma1 import detection as gemma_1_detection
from sana_native.models.lumina import detection as lumina_detection
from sana_native.models.lumina import loader as lumina
from sana_native.models.pixart import detection as pixart_detection
from sana_native.models.pixart import loader as pixart_loader
from sana_native.models.pixart_controlnet import detection as pixart_control_detection
from sana_native.models.pixart_controlnet import loader as pixart_control
from sana_native.models.registry import FAMILIES
from sana_native.models.sana import detection as sana_detection
from sana_native.models.sana import loader as sana
from sana_native.models.t5 import detection as t5_detection
from sana_native.models.t5 import loader as t5
from sana_native.tests.full_size import generate
from sana_native.tests.support import layouts, pixart
from sana_native.tests.support.foreign_files import FOREIGN, on_meta
from torch import Tensor

COMPONENTS = {"transformer": "SANA Model Loader", "text_encoder": "SANA Gemma Loader", "vae": "SANA DC-AE Loader",
              "controlnet": "SANA ControlNet Loader"}  # fmt: skip
SHARD = "model-00001-of-00002.safetensors"
FOREIGN_PATH = "a.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Repository of NVIDIA -> architecture; the file has the same name, but for those of 0.6B.
SANA = {
    "Sana_600M_512px": "SANA 0.6B",
    "Sana_600M_1024px": "SANA 0.6B",
    "Sana_1600M_512px": "SANA 1.6B",
    "Sana_1600M_512px_MultiLing": "SANA 1.6B",
    "Sana_1600M_1024px": "SANA 1.6B",
    "Sana_1600M_1024px_MultiLing": "SANA 1.6B",
    "Sana_1600M_1024px_BF16": "SANA 1.6B",
    "Sana_1600M_2Kpx_BF16": "SANA 1.6B",
    "Sana_1600M_4Kpx_BF16": "SANA 1.6B",
    "SANA1.5_1.6B_1024px": "SANA-1.5 1.6B",
    "SANA1.5_4.8B_1024px": "SANA-1.5 4.8B",
    "Sana_Sprint_0.6B_1024px": "SANA-Sprint 0.6B",
    "Sana_Sprint_1.6B_1024px": "SANA-Sprint 1.6B",
}
SIDES = {"512px": 16, "2Kpx": 64, "4Kpx": 128}  # of the latent that the file's table of positions is for, else 32
# Release of PixArt -> kind of `pixart.KINDS`, and whether the authors have a file of it.
PIXART = {
    "PixArt-XL-2-256x256": ("alpha 256", True),
    "PixArt-XL-2-SAM-256x256": ("alpha 256", True),
    "PixArt-XL-2-512x512": ("alpha 512", True),
    "PixArt-XL-2-1024-MS": ("alpha 1024-MS", True),
    "PixArt-LCM-XL-2-1024-MS": ("alpha 1024-MS", False),
    "PixArt-Alpha-DMD-XL-2-512x512": ("alpha 512", False),
    "PixArt-Sigma-XL-2-256x256": ("Sigma 256", True),
    "PixArt-Sigma-XL-2-512-MS": ("Sigma 512", True),
    "PixArt-Sigma-XL-2-1024-MS": ("Sigma 1024", True),
    "PixArt-Sigma-XL-2-2K-MS": ("Sigma 2K", True),
}
GEMMA_2B = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
            "num_key_value_heads": 1, "head_dim": 256}  # fmt: skip
LUMINA_NEXT = {"hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32, "num_kv_heads": 8, "multiple_of": 256,
               "cross_attention_dim": 2048}  # fmt: skip
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
          "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip
KL_WIDTHS = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
             "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip
KL_OF_HOST = {"ch": 128, "out_ch": 3, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [],
              "dropout": 0.0, "in_channels": 3, "resolution": 256, "z_channels": 4, "double_z": True}  # fmt: skip

COPIED_BLOCKS = 7  # of the released ControlNets
CONTROLNETS = {"Sana_1600M_1024px_BF16_ControlNet_HED.pth": "SANA 1.6B",
               "Sana_600M_1024px_ControlNet_HED.pth": "SANA 0.6B"}  # fmt: skip
# Release of PixArt's ControlNets -> kind of its base; copied blocks.
PIXART_CONTROLNETS = {"PixArt-XL-2-512-ControlNet.pth": "alpha 512", "PixArt-XL-2-1024-ControlNet.pth": "alpha 1024-MS"}
PIXART_COPIED_BLOCKS = 13
UNNAMED = "mine.safetensors"  # a PixArt-Sigma in diffusers' layout under another name, which no tensor tells from alpha

Files = dict[str, Callable[[], Mapping[str, Tensor]]]


def numbers(shapes: Mapping[str, object]) -> dict[str, Tensor]:
    """Tensors of one number each in the shapes given, or those of the tensors given."""
    number = torch.zeros((), dtype=torch.float16)
    return {key: number.expand(getattr(shape, "shape", shape)) for key, shape in shapes.items()}


class Given(Checkpoint):
    """A checkpoint of tensors at hand, which goes the way of one that is read."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: str, component: str) -> Checkpoint:  # noqa: ARG003 - as the reader's
        state_dict = dict(cls.tensors)
        return Checkpoint(path, state_dict, None, {}, state_dict, source=path)


def opened(path: str, tensors: Mapping[str, Tensor], component: str) -> Checkpoint:
    return type("File", (Given,), {"tensors": tensors}).open(path, component)


def count_of(checkpoint: Checkpoint) -> int:
    return sum(prod(tensor.shape) for tensor in checkpoint.state_dict.values())


def described(name: str, checkpoint: Checkpoint) -> str:
    """What the loader of a family says of a file in the log. Raises ValueError as the loader does."""
    layout = checkpoint.layout
    if name == "a SANA transformer":
        config, _, count = sana.configure(checkpoint, {})
        return sana_detection.describe_sana(config, count, layout)
    if name == "a PixArt transformer":
        config, reason, _, count = pixart_loader.configure(checkpoint, {})
        layout = "diffusers" if pixart_loader.is_diffusers_pixart(checkpoint.whole) else "authors'"
        told = pixart_detection.describe_pixart(config, count, layout, reason)
        return told if reason else f"{told}; nothing tells which of the two, so with a warning"
    if name == "a SANA ControlNet":
        return controlnet_detection.describe_controlnet(controlnet.configure(checkpoint), count_of(checkpoint))
    if name == "a PixArt ControlNet":
        return pixart_control_detection.describe_pixart_control(
            pixart_control.configure(checkpoint), count_of(checkpoint)
        )
    if name == "a Lumina-Next transformer":
        config, _, count = lumina.configure(checkpoint, {})
        return lumina_detection.describe_lumina(config, count, layout)
    count = count_of(checkpoint)
    if name == "a Gemma-2 text encoder":
        found = gemma_detection.detect_gemma2(checkpoint.state_dict)
        gemma_detection.check_gemma2(checkpoint.name, found, {})
        return gemma_detection.describe_gemma(found, count, "")
    if name == "a Gemma-1 text encoder":
        found = gemma_1_detection.detect_gemma_1(checkpoint.state_dict)
        gemma_1_detection.check_gemma_1(checkpoint.name, found, {})
        return gemma_1_detection.describe_gemma_1(found, count, "")
    if name == "a T5 text encoder":
        found, layers, count = t5.configure(checkpoint)
        return t5_detection.describe_t5(found, count, quantized.formats(layers))
    if name == "a DC-AE autoencoder":
        return dc_ae_detection.describe_dc_ae(dc_ae.configure(checkpoint), layout)
    kl.check_kind(checkpoint)
    return kl.describe_kl(checkpoint)


def answers(path: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[bool, str]]:
    """Component -> whether its loader takes the file, and what it says of it, without the path."""
    found = {}
    for component in COMPONENTS:
        try:
            checkpoint = opened(path, tensors, component)
            of_component = [family for family in FAMILIES if family.component == component]
            family, checkpoint = detect(checkpoint, of_component, FAMILIES)
            found[component] = True, described(family.name, checkpoint)
        except ValueError as error:
            found[component] = False, str(error).replace(checkpoint.name, "").strip()
    return found


def nvidia_sana(shapes: generate.Shapes, side: int) -> dict[str, Tensor]:
    return numbers(shapes | {"pos_embed": (1, side**2, shapes["pos_embed"][-1])})


def refusal(told: Mapping[str, tuple[bool, str]]) -> str:
    """The one answer to a file that no loader takes: of the loader for its kind, where there is one."""
    sentences = [sentence for _, sentence in told.values()]
    own = [sentence for sentence in sentences if not re.search(r"\(use SANA .+ Loader\), not ", sentence)]
    return re.sub(r", not an? (?:\S+ )+?(?=: pick|$)|\.$", "", min(own, key=len).removesuffix(".") + " ").strip()


def of_sana() -> Files:
    files = {}
    shapes = generate.load()
    for repository, name in SANA.items():
        own = {"Sana_600M_512px": "Sana_600M_512px_MultiLing", "Sana_600M_1024px": "Sana_600M_1024px_MultiLing"}
        file = own.get(repository, repository)
        side = next((side for mark, side in SIDES.items() if mark in repository), 32)
        files[f"{file}.pth"] = lambda name=name, side=side: nvidia_sana(shapes["NVIDIA"][name], side)
        files[f"{repository}_diffusers/transformer/{WEIGHTS}"] = lambda name=name: numbers(shapes["diffusers"][name])
    for version in ("1.0", "1.1"):
        name = "dc-ae-f32c32-sana-1.0 and 1.1"
        files[f"dc-ae-f32c32-sana-{version}/model.safetensors"] = lambda: numbers(shapes["DC-AE authors"][name])
        files[f"dc-ae-f32c32-sana-{version}-diffusers/{WEIGHTS}"] = lambda: numbers(shapes["diffusers"][name])
    lite = "dc-ae-lite-f32c32-sana-1.1"
    files[f"{lite}/model.safetensors"] = lambda: numbers(shapes["DC-AE authors"][lite])
    files[f"{lite}-diffusers/{WEIGHTS}"] = lambda: numbers(shapes["diffusers"][lite])
    gemma = shapes["transformers"]["Gemma-2-2b"]
    files[f"gemma-2-2b-it/{SHARD}"] = lambda: numbers(gemma)
    files["gemma_2_2b_it_elm_bf16.safetensors"] = lambda: (
        numbers(gemma) | {"spiece_model": torch.zeros(8, dtype=torch.uint8)}
    )
    return files


def merged_control(name: str) -> dict[str, Tensor]:
    """NVIDIA's file of a base with its ControlNet."""
    base = generate.load()["NVIDIA"][name]
    width = base["blocks.0.attn.qkv.weight"][1]
    projections = {"weight": (width, width), "bias": (width,)}
    shapes = {f"controlnet.0.before_proj.{key}": shape for key, shape in projections.items()}
    for i in range(COPIED_BLOCKS):
        shapes |= {f"controlnet.{i}.after_proj.{key}": shape for key, shape in projections.items()}
        for key, shape in base.items():
            if key.startswith("blocks.0."):
                shapes[key.replace("blocks.0.", f"controlnet.{i}.copied_block.")] = shape
    return numbers(base | shapes)


def merged_pixart(kind: str) -> dict[str, Tensor]:
    """The authors' file of a PixArt with its ControlNet."""
    base = authors_pixart(kind, with_positions=True)
    shapes = {"controlnet.0.before_proj.weight": (1152, 1152), "controlnet.0.before_proj.bias": (1152,)}
    for i in range(PIXART_COPIED_BLOCKS):
        shapes |= {f"controlnet.{i}.after_proj.weight": (1152, 1152), f"controlnet.{i}.after_proj.bias": (1152,)}
        for key, tensor in base.items():
            if key.startswith("blocks.0."):
                shapes[key.replace("blocks.0.", f"controlnet.{i}.copied_block.")] = tensor.shape
    return {f"base_model.{key}": tensor for key, tensor in base.items()} | numbers(shapes)


def of_controlnets() -> Files:
    files = {path: lambda name=name: merged_control(name) for path, name in CONTROLNETS.items()}
    files |= {path: lambda kind=kind: merged_pixart(kind) for path, kind in PIXART_CONTROLNETS.items()}
    control = {"num_layers": COPIED_BLOCKS, "num_attention_heads": 36, "num_cross_attention_heads": 16,
               "cross_attention_head_dim": 72, "cross_attention_dim": 1152}  # fmt: skip
    folder = "Sana_600M_1024px_ControlNetPlus_diffusers"
    files[f"{folder}/controlnet/{WEIGHTS}"] = lambda: numbers(on_meta(lambda: diffusers.SanaControlNetModel(**control)))
    return files


def meta_pixart(kind: str, depth: int = 28) -> dict[str, Tensor]:
    sample_size, scale, micro, *_ = pixart.KINDS[kind]
    return on_meta(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=sample_size,
            interpolation_scale=scale,
            use_additional_conditions=micro,
            caption_channels=4096,
            num_layers=depth,
        )
    )


def authors_pixart(kind: str, with_positions: bool) -> dict[str, Tensor]:
    shapes = pixart.authors_layout(meta_pixart(kind))
    sample_size, _, _, rows, _ = pixart.KINDS[kind]
    shapes["y_embedder.y_embedding"] = torch.empty(rows, 4096, device="meta")
    if with_positions:
        shapes["pos_embed"] = torch.empty(1, (sample_size // 2) ** 2, 1152, device="meta")
    return numbers(shapes)


def of_pixart() -> Files:
    files = {}
    for release, (kind, has_authors_file) in PIXART.items():
        if has_authors_file:
            with_positions = kind.startswith("alpha") or kind in ("Sigma 1024", "Sigma 2K")
            files[f"{release}.pth"] = lambda kind=kind, have=with_positions: authors_pixart(kind, have)
        files[f"{release}/transformer/{WEIGHTS}"] = lambda kind=kind: numbers(meta_pixart(kind))
    files[UNNAMED] = lambda: numbers(meta_pixart("Sigma 1024"))
    return files


def t5_shapes(**options: int) -> dict[str, Tensor]:
    return on_meta(lambda: transformers.T5EncoderModel(transformers.T5Config(**T5_XXL | options)))


def scaled_t5() -> dict[str, Tensor]:
    """As the host's 8 bits: linear layers in float8, each with its scale."""
    number = torch.zeros((), dtype=torch.float8_e4m3fn)
    found = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in numbers(t5_shapes()).items():
        found[key] = tensor
        if re.search(r"(SelfAttention\.[qkvo]|DenseReluDense\.w\w+)\.weight$", key):
            found |= {key: number.expand(tensor.shape), key.replace("weight", "scale_weight"): torch.ones(())}
    return found


def of_text_encoders() -> Files:
    whole_t5 = transformers.T5ForConditionalGeneration
    return {
        "t5xxl_fp16.safetensors": lambda: numbers(t5_shapes()),
        "t5xxl_fp8_e4m3fn_scaled.safetensors": scaled_t5,
        f"PixArt-Sigma-XL-2-1024-MS/text_encoder/{SHARD}": lambda: numbers(t5_shapes()),
        "t5-v1_1-xxl/pytorch_model.bin": lambda: numbers(on_meta(lambda: whole_t5(transformers.T5Config(**T5_XXL)))),
        f"Lumina-Next-SFT-diffusers/text_encoder/{SHARD}": lambda: gemma_1(transformers.GemmaModel),
        f"gemma-2b/{SHARD}": lambda: gemma_1(transformers.GemmaForCausalLM),
    }


def gemma_1(build: type, **options: int) -> dict[str, Tensor]:
    return numbers(on_meta(lambda: build(transformers.GemmaConfig(**GEMMA_2B | options))))


def lumina_shapes() -> dict[str, Tensor]:
    return on_meta(lambda: diffusers.LuminaNextDiT2DModel(**LUMINA_NEXT))


def kl_of_host(**options: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=KL_OF_HOST | options, embed_dim=4)
    return numbers(model.state_dict())


def of_lumina_and_kl() -> Files:
    authors = "consolidated.00-of-01.safetensors"
    names = "sdxl_vae.safetensors", "vae-ft-ema-560000-ema-pruned.safetensors"
    folders = "sdxl-vae", "sd-vae-ft-ema", "PixArt-Sigma-XL-2-1024-MS/vae", "Lumina-Next-SFT-diffusers/vae"
    diffusers_kl = lambda: numbers(on_meta(lambda: diffusers.AutoencoderKL(**KL_WIDTHS)))  # noqa: E731
    return {
        f"Lumina-Next-SFT/{authors}": lambda: numbers(layouts.original_lumina(lumina_shapes())),
        f"Lumina-Next-T2I/{authors}": lambda: numbers(layouts.original_lumina(lumina_shapes())),
        f"Lumina-Next-SFT-diffusers/transformer/{WEIGHTS}": lambda: numbers(lumina_shapes()),
        **dict.fromkeys(names, kl_of_host),
        **{f"{folder}/{WEIGHTS}": diffusers_kl for folder in folders},
    }


def released() -> Files:
    """Path of a released file as it lies on a disk -> its tensors."""
    return of_sana() | of_controlnets() | of_pixart() | of_lumina_and_kl() | of_text_encoders()


def old_lumina() -> dict[str, Tensor]:
    """As it was before June 2024: six modulations a block."""
    state_dict = numbers(layouts.original_lumina(lumina_shapes()))
    for key, tensor in state_dict.items():
        if key.endswith("adaLN_modulation.1.weight") and key.startswith("layers."):
            state_dict[key] = tensor[:1].expand(6 * 2304, -1)
    return state_dict


def pixart_lora() -> dict[str, Tensor]:
    layer = "transformer.transformer_blocks.0.attn1.to_q"
    return numbers({f"{layer}.lora_A.weight": (8, 1152), f"{layer}.lora_B.weight": (1152, 8)})


def gemma_2(width: int, layers: int) -> dict[str, Tensor]:
    config = transformers.Gemma2Config(hidden_size=width, num_hidden_layers=layers, vocab_size=256000)
    return numbers(on_meta(lambda: transformers.Gemma2ForCausalLM(config)))


def quantized_as(*ends: str) -> dict[str, Tensor]:
    keys = [f"transformer_blocks.0.attn1.to_q.{end}" for end in ends]
    return numbers(generate.load()["diffusers"]["SANA 0.6B"]) | numbers(dict.fromkeys(keys, (1,)))


def foreign() -> Files:
    """What a file is, as a user would say -> its tensors."""
    other_dc_ae = {"encoder_layers_per_block": (0, 4, 8, 2, 2, 2)}
    lumina_2 = diffusers.Lumina2Transformer2DModel
    own = {
        "Lumina-Next before June 2024": old_lumina,
        "Lumina Image 2.0 (diffusers)": lambda: numbers(on_meta(lambda: lumina_2(num_layers=1, num_refiner_layers=1))),
        "PixArt with 14 blocks, pruned": lambda: numbers(meta_pixart("Sigma 1024", depth=14)),
        "Gemma-1 7B": lambda: gemma_1(
            transformers.GemmaForCausalLM,
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        "Gemma-2 9B": lambda: gemma_2(3584, 42),
        "T5 v1.1 XL": lambda: numbers(t5_shapes(d_model=2048, d_ff=5120, num_heads=32)),
        "DC-AE f64c128": lambda: numbers(on_meta(lambda: diffusers.AutoencoderDC(**other_dc_ae))),
        "AutoencoderKL with 16 channels (Flux)": lambda: numbers(kl_of_host(z_channels=16)),
        "a LoRA of PixArt": pixart_lora,
        "SANA for Nunchaku": lambda: quantized_as("qweight", "lora_down"),
        "SANA quantized by quanto": lambda: quantized_as("weight._data"),
        "SANA quantized by SDNQ": lambda: quantized_as("scale"),
        "three tensors of nobody": lambda: numbers(dict.fromkeys("abc", (1,))),
        "a file without tensors": dict,
    }
    classes = {name: lambda build=build: numbers(dict.fromkeys(build(), (1,))) for name, build in FOREIGN.items()}
    return classes | own
