"""What an original checkpoint's tensors say about its network, and diffusers' configuration of it.

Everything is read from names and shapes. What is not of the one known architecture is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from codec.conversion.errors import ConversionError
from codec.conversion.ldm_names import LdmShape, is_attention_matrix, name_table

NORM_GROUPS = 32
"""Groups of every normalisation in the original; no tensor's shape says it."""
_BLOCK = ("DownEncoderBlock2D", "UpDecoderBlock2D")
_ATTENTION_BLOCK = ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")

Sides = Mapping[str, Sequence[int]]


def read_shape(sides: Sides, what: str) -> LdmShape:
    """Returns the network that tensors of these names and sides belong to.

    Args:
        sides: The sides of each tensor, by its original name without a prefix.
        what: Names the checkpoint in errors.

    Raises:
        ConversionError: They are no VAE of LDM or Stable Diffusion.
    """
    _refuse_other_kinds(sides, what)
    widths: list[int] = []
    while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in sides:
        widths.append(sides[name][0])
    layers = 0
    while f"encoder.down.0.block.{layers}.conv1.weight" in sides:
        layers += 1
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight")
    if not widths or any(len(sides.get(name, ())) != 4 for name in needed):
        raise ConversionError(
            f"found no encoder and decoder of images in {what}, expected a VAE of LDM or Stable "
            "Diffusion; give a checkpoint that holds one"
        )
    shape = LdmShape(
        in_channels=sides[needed[0]][1],
        out_channels=sides[needed[2]][0],
        latent_channels=sides[needed[1]][0] // 2,
        widths=tuple(widths),
        layers=layers,
        attention=tuple(
            f"encoder.down.{level}.attn.0.norm.weight" in sides for level in range(len(widths))
        ),
        middle_attention="encoder.mid.attn_1.norm.weight" in sides,
        quant_conv="quant_conv.weight" in sides,
        post_quant_conv="post_quant_conv.weight" in sides,
    )
    _check_names(shape, sides, what)
    return shape


def diffusers_config(shape: LdmShape) -> dict[str, Any]:
    """Returns AutoencoderKL's settings for a network, without statistics."""
    kinds = [_ATTENTION_BLOCK if attends else _BLOCK for attends in shape.attention]
    return {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "block_out_channels": list(shape.widths),
        "layers_per_block": shape.layers,
        "act_fn": "silu",
        "latent_channels": shape.latent_channels,
        "norm_num_groups": NORM_GROUPS,
        "use_quant_conv": shape.quant_conv,
        "use_post_quant_conv": shape.post_quant_conv,
        "mid_block_add_attention": shape.middle_attention,
    }


def shape_of_config(config: Mapping[str, Any], what: str) -> LdmShape:
    """Returns the original network of an AutoencoderKL's configuration.

    Raises:
        ConversionError: The original code cannot express it.
    """
    groups, activation = config["norm_num_groups"], config["act_fn"]
    if groups != NORM_GROUPS or activation != "silu":
        raise ConversionError(
            f"found norm_num_groups {groups} and act_fn {activation!r} in {what}, expected "
            f"{NORM_GROUPS} and 'silu': the original code knows no others"
        )
    attention = tuple(kind == _ATTENTION_BLOCK[0] for kind in config["down_block_types"])
    shape = LdmShape(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        latent_channels=config["latent_channels"],
        widths=tuple(config["block_out_channels"]),
        layers=config["layers_per_block"],
        attention=attention,
        middle_attention=config["mid_block_add_attention"],
        quant_conv=config["use_quant_conv"],
        post_quant_conv=config["use_post_quant_conv"],
    )
    expected = diffusers_config(shape)
    for key in ("down_block_types", "up_block_types"):
        if list(config[key]) != expected[key]:
            raise ConversionError(
                f"found {key} {list(config[key])} in {what}, expected {expected[key]}: the "
                "original code knows no others"
            )
    return shape


def check_sides(found: Sides, expected: Sides, what: str) -> None:
    """Compares a checkpoint's tensors, by their original names, with those of the network.

    Args:
        found: As for `read_shape`; those of attention with two sides or four.
        expected: Those of diffusers' network.
        what: Names the checkpoint in errors.

    Raises:
        ConversionError: One is of another size.
    """
    for name, sides in expected.items():
        given = tuple(found[name])
        if is_attention_matrix(name) and given[2:] == (1, 1):
            given = given[:2]
        if given != tuple(sides):
            raise ConversionError(
                f"found {name} of {'x'.join(map(str, given))} numbers in {what}, expected "
                f"{'x'.join(map(str, sides))} beside its other tensors; AutoencoderKL has no "
                "such network"
            )


def _refuse_other_kinds(sides: Sides, what: str) -> None:
    if any("quantize" in name for name in sides):
        raise ConversionError(
            f"found a codebook in {what}, expected a VAE of continuous latents; models of codes "
            "cannot be converted"
        )
    if any(re.match(r"(en|de)coder\.(down|up|mid)_blocks?\.", name) for name in sides):
        raise ConversionError(
            f"found diffusers' own names in {what}, expected an original checkpoint; use the "
            "directory that it comes from as it is"
        )


def _check_names(shape: LdmShape, sides: Sides, what: str) -> None:
    expected = name_table(shape)
    missing = [name for name in expected if name not in sides]
    extra = sorted(sides.keys() - expected.keys())
    if missing or extra:
        found, name = ("no", missing[0]) if missing else ("an unknown", extra[0])
        raise ConversionError(
            f"found {found} tensor {name} in {what} ({len(missing)} missing, {len(extra)} "
            "unknown), expected the tensors of an LDM or Stable Diffusion VAE and no others"
        )
