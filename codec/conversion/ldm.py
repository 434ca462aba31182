"""Original LDM and Stable Diffusion VAE checkpoints to diffusers directories, and back.

Tensors keep their bytes and dtype; only the two sides of 1 of an attention's convolutions come and
go. Every conversion is checked by running the original network on the file's own tensors and
diffusers' network on the directory.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codec import backbone
from codec.architectures import read_config
from codec.catalog import autoencoder_folder
from codec.conversion.agreement import Agreement, difference, random_image
from codec.conversion.errors import ConversionError
from codec.conversion.ldm_names import (
    LdmShape,
    is_attention_matrix,
    name_table,
    newest_name,
)
from codec.conversion.ldm_network import decode, encode_moments
from codec.conversion.ldm_shapes import check_sides, diffusers_config, read_shape, shape_of_config
from codec.conversion.single_file import (
    STATISTICS,
    SingleFile,
    read_single_file,
    sides_of,
    write_single_file,
)
from codec.identity import CONFIG_FILE, WEIGHTS_STEM, latent_id, weight_files
from codec.outputs import atomic_folder, refuse_existing, refuse_existing_folder

_SAMPLE_SIZE = 512
_SD_FACTOR = 0.18215


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion read, wrote and compared.

    Attributes:
        source: Path of the input.
        output: Path of the result.
        latent_id: Of the directory, read or written.
        shape: The network.
        num_tensors: Of the network.
        num_left_out: Tensors of the file that are not the VAE's.
        scaling_factor: What the directory says.
        shift_factor: Likewise.
        agreement: Between the original network and diffusers'.
        note: Something that the user should know of; None for nothing.
    """

    source: str
    output: str
    latent_id: str
    shape: LdmShape
    num_tensors: int
    num_left_out: int
    scaling_factor: float | None
    shift_factor: float | None
    agreement: Agreement
    note: str | None = None


def to_directory(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    force: bool = False,
) -> Converted:
    """Writes the VAE of an original checkpoint as a directory that diffusers and Codec load.

    Args:
        checkpoint: A .safetensors file or a pickle of tensors; of the VAE alone or with the rest
            of Stable Diffusion.
        output: The directory; complete or not there.
        scaling_factor: What diffusion sees is (latents - shift_factor) * scaling_factor. None for
            what the file says; where it says nothing, Stable Diffusion's 0.18215 for a network of
            its shape and 1 for others, with a note.
        shift_factor: See `scaling_factor`; None for what the file says, else 0.
        force: Replace a model directory that is there.

    Raises:
        ConversionError: The checkpoint holds something else, or the outputs differ.
        FileExistsError: The output is there.
    """
    source, target = Path(checkpoint), Path(output)
    refuse_existing_folder(target, force=force, marker=CONFIG_FILE, what="model directory")
    file = read_single_file(source)
    sides = sides_of(file.tensors)
    shape = read_shape(sides, str(source))
    given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    statistics, note = _statistics(file, shape, given)
    model = _empty_model({**diffusers_config(shape), **statistics}, source)
    table = name_table(shape)
    expected = model.state_dict()
    check_sides(sides, {name: expected[ours].shape for name, ours in table.items()}, str(source))
    tensors = {
        ours: file.tensors[name].reshape(expected[ours].shape).contiguous()
        for name, ours in table.items()
    }
    with atomic_folder(target) as partial:
        model.save_config(partial)
        weights = partial / f"{WEIGHTS_STEM}.safetensors"
        save_file(tensors, weights, metadata={"format": "pt"})
        agreement = _compare(file.tensors, shape, partial)
        identity = latent_id(partial)
    return Converted(
        str(source),
        str(target),
        identity,
        shape,
        len(tensors),
        file.num_left_out,
        statistics["scaling_factor"],
        statistics.get("shift_factor"),
        agreement,
        note,
    )


def to_single_file(
    directory: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool = False
) -> Converted:
    """Writes an AutoencoderKL of a directory as the original code loads it: the inverse.

    Scaling statistics, which the original's files have no place for, go beside the tensors, where
    `to_directory` finds them.

    Args:
        directory: Of the model, or of a pipeline with one.
        output: A .safetensors file, or a pickle if its suffix is .ckpt, .pt, .pth or .bin.
        force: Overwrite a file that is there.

    Raises:
        ConversionError: It is another model, or the outputs differ.
        ModelError: It is none, or a damaged one.
        FileExistsError: The output is there.
    """
    source, target = autoencoder_folder(Path(directory)), Path(output)
    refuse_existing(target, force=force)
    class_name = str(read_config(source)["_class_name"])
    if class_name != "AutoencoderKL":
        raise ConversionError(
            f"found {class_name} in {source}, expected AutoencoderKL: the original code knows no "
            "other network"
        )
    config: Mapping[str, Any] = backbone.load_autoencoder(source).config
    shape = shape_of_config(config, str(source))
    stored = {
        newest_name(name): tensor
        for path in weight_files(source)
        for name, tensor in load_file(path).items()
    }
    tensors = {name: _as_original(name, stored[ours]) for name, ours in name_table(shape).items()}
    statistics = {key: config[key] for key in STATISTICS}
    agreement = _compare(tensors, shape, source)
    write_single_file(target, SingleFile(tensors, statistics))
    return Converted(
        str(source),
        str(target),
        latent_id(source),
        shape,
        len(tensors),
        0,
        config["scaling_factor"],
        config["shift_factor"],
        agreement,
    )


def _statistics(
    file: SingleFile, shape: LdmShape, given: Mapping[str, float | None]
) -> tuple[dict[str, Any], str | None]:
    """What config.json is to say of latents, and a note if that was guessed."""
    found = dict(file.statistics)
    found |= {key: value for key, value in given.items() if value is not None}
    found.setdefault("sample_size", _SAMPLE_SIZE)
    if "scaling_factor" in found:
        return found, None
    is_sd = shape.latent_channels == 4 and shape.factor == 8 and shape.quant_conv
    found["scaling_factor"] = _SD_FACTOR if is_sd else 1.0
    what = "that of Stable Diffusion 1 and 2" if is_sd else "none"
    hint = "SDXL's is 0.13025" if is_sd else "SD 3's is 1.5305, with --shift-factor 0.0609"
    return found, (
        f"found no scaling factor in the checkpoint; took {found['scaling_factor']:g}, {what}: "
        f"give --scaling-factor for another ({hint})"
    )


def _empty_model(config: Mapping[str, Any], source: Path) -> Any:
    """AutoencoderKL without weights."""
    from diffusers import AutoencoderKL

    try:
        with torch.device("meta"):
            return AutoencoderKL.from_config(dict(config))
    except ValueError as error:  # of group normalisation, for widths that are no multiples of 32
        raise ConversionError(
            f"found levels of {config['block_out_channels']} channels in {source}, which make no "
            f"network ({error}); expected multiples of {config['norm_num_groups']}"
        ) from None


def _as_original(name: str, tensor: Tensor) -> Tensor:
    is_matrix = is_attention_matrix(name) and tensor.ndim == 2
    return tensor[:, :, None, None] if is_matrix else tensor


def _compare(tensors: Mapping[str, Tensor], shape: LdmShape, directory: Path) -> Agreement:
    """Runs the original network on tensors and diffusers' on a directory."""
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    model = backbone.load_autoencoder(directory).eval()
    x = random_image(shape.in_channels, shape.factor)
    with torch.no_grad():
        moments = model.encode(x).latent_dist.parameters
        expected = encode_moments(weights, shape, x)
        latents = expected[:, : shape.latent_channels]
        images = model.decode(latents).sample
    agreement = Agreement(
        difference(moments, expected), difference(images, decode(weights, shape, latents))
    )
    agreement.check(torch.float32, "conversion")  # both ran in float32, on the same weights
    return agreement
