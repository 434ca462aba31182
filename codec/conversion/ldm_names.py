"""The names of tensors in an original LDM or Stable Diffusion VAE, and diffusers' names for them.

The originals are those of CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py`, which
Stable Diffusion 1 to 3, SDXL and FLUX kept. Their decoder counts levels from the image, diffusers'
from the latents.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_RESNET = ("norm1", "conv1", "norm2", "conv2")
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# What diffusers called an attention's parts before 0.18; directories on the hub still have them.
_EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_EARLIER_PART = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)(?=\.)")


@dataclass(frozen=True, slots=True)
class LdmShape:
    """All that tells one original network from another.

    Attributes:
        in_channels: Of the image.
        out_channels: Of the reconstruction.
        latent_channels: C.
        widths: Channels at H, H/2, ...
        layers: Residual blocks at each level of the encoder; the decoder has one more.
        attention: For each level whether attention follows each block.
        middle_attention: Whether there is attention between the halves' two middle blocks.
        quant_conv: Whether a 1x1 convolution follows the encoder.
        post_quant_conv: Whether one stands before the decoder.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    middle_attention: bool
    quant_conv: bool
    post_quant_conv: bool

    @property
    def factor(self) -> int:
        """Pixels a side that one latent cell stands for."""
        return 1 << (len(self.widths) - 1)


def name_table(shape: LdmShape) -> dict[str, str]:
    """Returns diffusers' name of each tensor, by the original's name."""
    modules = dict(_modules(shape))
    return {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in modules.items()
        for part in ("weight", "bias")
    }


def is_attention_matrix(original_name: str) -> bool:
    """Whether a tensor is a 1x1 convolution in the original and a matrix in diffusers."""
    return re.search(r"\.attn_?\d+\.(q|k|v|proj_out)\.weight$", original_name) is not None


def newest_name(diffusers_name: str) -> str:
    """Returns what diffusers calls today what a directory may name as earlier releases did."""
    return _EARLIER_PART.sub(lambda m: f"{m[1]}.{_EARLIER[m[2]]}", diffusers_name)


def _modules(shape: LdmShape) -> Iterator[tuple[str, str]]:
    yield from _half(shape, "encoder")
    yield from _half(shape, "decoder")
    if shape.quant_conv:
        yield "quant_conv", "quant_conv"
    if shape.post_quant_conv:
        yield "post_quant_conv", "post_quant_conv"


def _half(shape: LdmShape, half: str) -> Iterator[tuple[str, str]]:
    for part in ("conv_in", "conv_out"):
        yield f"{half}.{part}", f"{half}.{part}"
    yield f"{half}.norm_out", f"{half}.conv_norm_out"
    for number in (1, 2):
        middle = f"{half}.mid_block.resnets.{number - 1}"
        yield from _resnet(f"{half}.mid.block_{number}", middle, has_shortcut=False)
    if shape.middle_attention:
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
    yield from _down(shape) if half == "encoder" else _up(shape)


def _down(shape: LdmShape) -> Iterator[tuple[str, str]]:
    last = len(shape.widths) - 1
    for level, width in enumerate(shape.widths):
        theirs, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        before = shape.widths[max(level - 1, 0)]
        yield from _blocks(shape, level, theirs, ours, shape.layers, before != width)
        if level < last:
            yield f"{theirs}.downsample.conv", f"{ours}.downsamplers.0.conv"


def _up(shape: LdmShape) -> Iterator[tuple[str, str]]:
    last = len(shape.widths) - 1
    for level, width in enumerate(shape.widths):
        theirs, ours = f"decoder.up.{level}", f"decoder.up_blocks.{last - level}"
        before = shape.widths[min(level + 1, last)]
        yield from _blocks(shape, level, theirs, ours, shape.layers + 1, before != width)
        if level > 0:
            yield f"{theirs}.upsample.conv", f"{ours}.upsamplers.0.conv"


def _blocks(
    shape: LdmShape, level: int, theirs: str, ours: str, layers: int, widens: bool
) -> Iterator[tuple[str, str]]:
    """The blocks of a level; the first has a shortcut when it changes the width."""
    for layer in range(layers):
        has_shortcut = widens and layer == 0
        yield from _resnet(f"{theirs}.block.{layer}", f"{ours}.resnets.{layer}", has_shortcut)
        if shape.attention[level]:
            yield from _attention(f"{theirs}.attn.{layer}", f"{ours}.attentions.{layer}")


def _resnet(theirs: str, ours: str, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    for part in _RESNET:
        yield f"{theirs}.{part}", f"{ours}.{part}"
    if has_shortcut:
        yield f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut"


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part, name in _ATTENTION.items():
        yield f"{theirs}.{part}", f"{ours}.{name}"
