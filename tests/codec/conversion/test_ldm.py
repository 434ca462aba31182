"""Original checkpoints become directories and come back exactly; all else is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from codec import Codec, LatentCodecError
from codec.autoencoder import LatentAutoencoder
from codec.conversion import ldm
from codec.conversion.ldm import to_directory, to_single_file
from codec.conversion.ldm_names import is_attention_matrix, name_table
from codec.conversion.ldm_shapes import read_shape
from codec.conversion.single_file import read_single_file, sides_of
from codec.identity import latent_id
from tests.codec.conversion.original_checkpoints import (
    SHAPES,
    original_tensors,
    shape,
    write_checkpoint,
)
from tests.conftest import TINY

Tensors = dict[str, Tensor]


def same(first: Tensors, second: Tensors) -> bool:
    """Whether names, dtypes, sides and bytes are the same."""
    return first.keys() == second.keys() and all(
        one.dtype == second[name].dtype
        and one.shape == second[name].shape
        and torch.equal(one, second[name])
        for name, one in first.items()
    )


@pytest.mark.parametrize(
    ("name", "suffix"), [("sd", ".ckpt"), *((name, ".safetensors") for name in SHAPES)]
)
def test_there_and_back(name: str, suffix: str, tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES[name])
    source = write_checkpoint(tmp_path / f"in{suffix}", tensors)
    done = to_directory(source, tmp_path / "dir", scaling_factor=0.3, shift_factor=0.1)
    assert done.shape == SHAPES[name]
    assert max(done.agreement.latents, done.agreement.images) < 1e-5
    model = AutoencoderKL.from_pretrained(tmp_path / "dir")
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.3, 0.1)
    to_single_file(tmp_path / "dir", tmp_path / f"out{suffix}")
    assert same(read_single_file(tmp_path / f"out{suffix}").tensors, tensors)
    again = to_directory(tmp_path / f"out{suffix}", tmp_path / "again")
    assert again.latent_id == done.latent_id == latent_id(tmp_path / "dir")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "dir" / file).read_bytes()


def test_the_names_are_those_of_stable_diffusion() -> None:
    """As its published checkpoints have them: 248 tensors."""
    table = name_table(shape(widths=(128, 256, 512, 512), layers=2))
    assert len(table) == 248
    known = {
        "encoder.down.1.block.1.conv2.weight": "encoder.down_blocks.1.resnets.1.conv2.weight",
        "encoder.down.2.downsample.conv.bias": "encoder.down_blocks.2.downsamplers.0.conv.bias",
        "encoder.mid.block_2.norm1.weight": "encoder.mid_block.resnets.1.norm1.weight",
        "encoder.mid.attn_1.proj_out.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.up.0.block.2.norm2.bias": "decoder.up_blocks.3.resnets.2.norm2.bias",
        "decoder.up.3.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "post_quant_conv.weight": "post_quant_conv.weight",
    }
    assert known.items() <= table.items()
    shortcuts = {name for name in table if name.endswith("nin_shortcut.weight")}
    assert {name.removesuffix(".block.0.nin_shortcut.weight") for name in shortcuts} == {
        "encoder.down.1",
        "encoder.down.2",
        "decoder.up.0",
        "decoder.up.1",
    }
    assert "decoder.up.0.upsample.conv.weight" not in table


@pytest.mark.parametrize("name", ["sd3", "deep"])
def test_diffusers_own_conversion_gives_the_same(name: str, tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES[name])
    to_directory(write_checkpoint(tmp_path / "in.safetensors", tensors), tmp_path / "dir")
    config = AutoencoderKL.load_config(tmp_path / "dir")
    expected = convert_ldm_vae_checkpoint(dict(tensors), config)
    assert same(load_file(tmp_path / "dir/diffusion_pytorch_model.safetensors"), expected)


def test_diffusers_reads_what_goes_back(tmp_path: Path) -> None:
    """`from_single_file` takes our file as an original checkpoint."""
    source = write_checkpoint(tmp_path / "in.safetensors", original_tensors(SHAPES["sd"]))
    to_directory(source, tmp_path / "dir/vae")
    to_single_file(tmp_path / "dir", tmp_path / "out.safetensors")  # a pipeline's directory
    loaded = AutoencoderKL.from_single_file(
        str(tmp_path / "out.safetensors"), config=str(tmp_path / "dir"), subfolder="vae"
    )
    expected = AutoencoderKL.from_pretrained(tmp_path / "dir/vae")
    assert same(loaded.state_dict(), expected.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES["sd"], dtype)
    to_directory(write_checkpoint(tmp_path / "in.safetensors", tensors), tmp_path / "dir")
    stored = load_file(tmp_path / "dir/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    to_single_file(tmp_path / "dir", tmp_path / "out.safetensors")
    assert same(read_single_file(tmp_path / "out.safetensors").tensors, tensors)


def test_attention_as_matrices_is_the_same_network(tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES["attention"])
    flat = {
        name: one.flatten(1) if is_attention_matrix(name) else one for name, one in tensors.items()
    }
    assert not same(flat, tensors)
    ids = [
        to_directory(write_checkpoint(tmp_path / f"{n}.safetensors", one), tmp_path / n).latent_id
        for n, one in (("convolutions", tensors), ("matrices", flat))
    ]
    assert ids[0] == ids[1]
    to_single_file(tmp_path / "matrices", tmp_path / "out.ckpt")  # as the original code loads it
    assert same(read_single_file(tmp_path / "out.ckpt").tensors, tensors)


def test_directories_of_earlier_diffusers_go_back(tmp_path: Path) -> None:
    """They call the parts of attention query, key, value and proj_attn."""
    tensors = original_tensors(SHAPES["sd"])
    to_directory(write_checkpoint(tmp_path / "in.safetensors", tensors), tmp_path / "dir")
    path = tmp_path / "dir/diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    stored = load_file(path)
    for new, old in names.items():
        stored = {name.replace(f".{new}.", f".{old}."): one for name, one in stored.items()}
    write_checkpoint(path, stored)
    to_single_file(tmp_path / "dir", tmp_path / "out.safetensors")
    assert same(read_single_file(tmp_path / "out.safetensors").tensors, tensors)


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("first_stage_model.", ".ckpt"), ("vae.", ".safetensors")]
)
def test_the_vae_of_a_full_checkpoint(prefix: str, suffix: str, tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES["sd"])
    full = {f"{prefix}{name}": one for name, one in tensors.items()}
    full |= {
        "model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3),
        "cond_stage_model.transformer.text_model.position_ids": torch.arange(77),
        "scale_factor": torch.tensor(0.25),
    }
    done = to_directory(write_checkpoint(tmp_path / f"sd{suffix}", full), tmp_path / "dir")
    assert (done.num_tensors, done.num_left_out) == (len(tensors), 3)
    assert done.scaling_factor == 0.25
    assert done.note is None
    to_single_file(tmp_path / "dir", tmp_path / "vae.safetensors")
    assert same(read_single_file(tmp_path / "vae.safetensors").tensors, tensors)


def test_a_first_stage_of_its_own_has_losses_beside(tmp_path: Path) -> None:
    tensors = original_tensors(SHAPES["sd"])
    aside = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
        "model_ema.decay": torch.tensor(0.99),
    }
    done = to_directory(write_checkpoint(tmp_path / "v.ckpt", tensors | aside), tmp_path / "dir")
    assert done.num_left_out == 3


def test_a_guessed_factor_is_announced(tmp_path: Path) -> None:
    deep = shape(widths=(32,) * 4)
    done = to_directory(
        write_checkpoint(tmp_path / "v.safetensors", original_tensors(deep)), tmp_path / "sd"
    )
    assert done.scaling_factor == 0.18215
    assert done.note is not None
    assert "give --scaling-factor" in done.note
    other = original_tensors(SHAPES["sd3"])
    done = to_directory(write_checkpoint(tmp_path / "o.safetensors", other), tmp_path / "other")
    assert done.scaling_factor == 1.0
    assert done.note is not None


def test_codec_takes_the_result(tmp_path: Path, pixels: Callable[..., Any]) -> None:
    tensors = original_tensors(SHAPES["sd"])
    to_directory(write_checkpoint(tmp_path / "v.safetensors", tensors), tmp_path / "dir")
    codec = Codec.from_pretrained(tmp_path / "dir", dtype="float32")
    image = codec.decompress(codec.compress(pixels(24, 32)))
    assert image.size == (32, 24)


def test_a_wrong_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs are compared with the original network's, so q in the place of k is seen."""

    def wrong(of: Any) -> dict[str, str]:
        table = name_table(of)
        q, v = (f"encoder.mid.attn_1.{part}.weight" for part in "qv")
        table[q], table[v] = table[v], table[q]
        return table

    source = write_checkpoint(tmp_path / "v.safetensors", original_tensors(SHAPES["sd"]))
    monkeypatch.setattr(ldm, "name_table", wrong)
    with pytest.raises(LatentCodecError, match=r"found outputs that differ by .* nothing was"):
        to_directory(source, tmp_path / "dir")
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def with_codebook(tensors: Tensors) -> Tensors:
    return tensors | {"quantize.embedding.weight": torch.zeros(16, 4)}


def of_video(tensors: Tensors) -> Tensors:
    return tensors | {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, 3)}


def without_one(tensors: Tensors) -> Tensors:
    return {name: one for name, one in tensors.items() if name != "decoder.mid.block_1.conv1.bias"}


def with_another(tensors: Tensors) -> Tensors:
    return tensors | {"encoder.down.0.block.0.temb_proj.weight": torch.zeros(32, 8)}


def of_other_sides(tensors: Tensors) -> Tensors:
    return tensors | {"quant_conv.weight": torch.zeros(6, 8, 1, 1)}


def of_diffusers(tensors: Tensors) -> Tensors:
    table = name_table(SHAPES["sd"])
    return {table[name]: one for name, one in tensors.items()}


def of_nothing(tensors: Tensors) -> Tensors:
    return {"weight": torch.zeros(3)}


def of_odd_widths(tensors: Tensors) -> Tensors:
    return {
        name: one.repeat_interleave(1, 0)[:24] if one.shape[0] == 32 else one
        for name, one in tensors.items()
    }


REFUSED = [
    (with_codebook, "found a codebook"),
    (of_video, "found no encoder and decoder of images"),
    (without_one, r"found no tensor decoder\.mid\.block_1\.conv1\.bias .*\(1 missing, 0 unknown\)"),
    (with_another, "found an unknown tensor encoder.down.0.block.0.temb_proj.weight"),
    (of_other_sides, "found quant_conv.weight of 6x8x1x1 numbers .* expected 8x8x1x1"),
    (of_diffusers, "found diffusers' own names"),
    (of_nothing, "found no tensor encoder.conv_in.weight"),
    (of_odd_widths, r"found levels of \[24, 64\] channels .* expected multiples of 32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_tensors_are_refused(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    tensors = change(original_tensors(SHAPES["sd"]))
    source = write_checkpoint(tmp_path / "v.safetensors", tensors)
    with pytest.raises(LatentCodecError, match=message):
        to_directory(source, tmp_path / "dir")
    assert not (tmp_path / "dir").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "v.ckpt"
    tensors = original_tensors(SHAPES["sd"])
    torch.save({"state_dict": tensors, "callbacks": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(LatentCodecError, match="found more than tensors in"):
        to_directory(path, tmp_path / "dir")
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(LatentCodecError, match="found more than tensors in"):
        to_directory(path, tmp_path / "dir")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("length", [0, 5, 100, -100])
def test_damage_is_one_sentence(suffix: str, length: int, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / f"v{suffix}", original_tensors(SHAPES["sd"]))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(LatentCodecError, match=r"found (damage|more than tensors) in"):
        to_directory(path, tmp_path / "dir")
    torch.save([torch.zeros(3)], tmp_path / "list.ckpt")
    with pytest.raises(LatentCodecError, match="found no tensors in"):
        to_directory(tmp_path / "list.ckpt", tmp_path / "dir")


@pytest.mark.parametrize(
    "note",
    [
        "nothing",
        "[]",
        '{"scaling_factor": 0}',
        '{"scaling_factor": [1]}',
        '{"sample_size": null}',
        '{"latents_std": ["a"]}',
        '{"_class_name": "os.system"}',
    ],
)
def test_a_strange_note_is_refused(note: str, tmp_path: Path) -> None:
    """What we write beside the tensors is read again, and may have been forged."""
    tensors = original_tensors(SHAPES["plain"])
    torch.save({"state_dict": tensors, "latent_codec": note}, tmp_path / "v.ckpt")
    with pytest.raises(LatentCodecError, match=r"found a note in .* did not write"):
        to_directory(tmp_path / "v.ckpt", tmp_path / "dir")


def test_other_directories_are_refused(tmp_path: Path) -> None:
    LatentAutoencoder(**TINY).save_pretrained(tmp_path / "ours")
    with pytest.raises(LatentCodecError, match=r"found LatentAutoencoder in .* AutoencoderKL"):
        to_single_file(tmp_path / "ours", tmp_path / "v.safetensors")
    AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)).save_pretrained(tmp_path / "groups")
    with pytest.raises(LatentCodecError, match=r"found norm_num_groups 4 .* expected 32"):
        to_single_file(tmp_path / "groups", tmp_path / "v.safetensors")
    assert not (tmp_path / "v.safetensors").exists()


def test_shapes_are_read_from_sides_alone() -> None:
    for one in SHAPES.values():
        assert read_shape(sides_of(original_tensors(one)), "it") == one
