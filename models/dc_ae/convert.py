"""The DC-AE authors' key layout -> the internal one, which is diffusers'. Dict in, dict out.

Source: key lists of mit-han-lab/efficientvit checkpoints.
"""

from ..files.layout import StateDict, split_rows

# Substring replacements from the original DC-AE names, in this order. The first is of decoders whose last convolution
# upsamples (DC-AE-Lite); below `.conv.conv.` it would be taken for the plain one.
DC_AE_REPLACEMENTS = (
    ("decoder.project_out.op_list.2.conv.conv.", "decoder.conv_out.conv."),
    ("main.", ""),
    ("op_list.", ""),
    ("context_module", "attn"),
    ("local_module", "conv_out"),
    ("aggreg.0.0", "to_qkv_multiscale.0.proj_in"),
    ("aggreg.0.1", "to_qkv_multiscale.0.proj_out"),
    ("depth_conv.conv", "conv_depth"),
    ("inverted_conv.conv", "conv_inverted"),
    ("point_conv.conv", "conv_point"),
    ("point_conv.norm", "norm"),
    ("conv.conv.", "conv."),
    ("conv1.conv", "conv1"),
    ("conv2.conv", "conv2"),
    ("conv2.norm", "norm"),
    ("proj.norm", "norm_out"),
    ("encoder.project_in.conv", "encoder.conv_in"),
    ("encoder.project_out.0.conv", "encoder.conv_out"),
    ("encoder.stages", "encoder.down_blocks"),
    ("decoder.project_in.conv", "decoder.conv_in"),
    ("decoder.project_out.0", "decoder.norm_out"),
    ("decoder.project_out.2.conv", "decoder.conv_out"),
    ("decoder.stages", "decoder.up_blocks"),
)


def convert_original_dc_ae(state_dict: StateDict) -> StateDict:
    """The DC-AE authors' keys -> diffusers'; the fused qkv convolution becomes three linear layers."""
    out: StateDict = {}
    for key, tensor in state_dict.items():
        for old, new in DC_AE_REPLACEMENTS:
            key = key.replace(old, new)
        if key.endswith(".qkv.conv.weight"):
            stem = key.removesuffix(".qkv.conv.weight")
            out |= split_rows(
                tuple(f"{stem}.{name}" for name in ("to_q", "to_k", "to_v")), "weight", tensor[:, :, 0, 0]
            )
        elif key.endswith(".attn.proj.conv.weight"):
            out[key.replace(".proj.conv.weight", ".to_out.weight")] = tensor[:, :, 0, 0]
        else:
            out[key] = tensor
    return out
