"""Pipelines of every family take our autoencoder, and decode by the family's own formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from codec import Codec
from codec.autoencoder import LatentAutoencoder
from tests.codec.pipelines.families import (
    FAMILIES,
    PROMPT,
    SIDE,
    dit,
    ldm,
    ldm_text,
    make_vae,
    quiet,
    run,
    scheduler,
    to_images,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_image_is_what_the_formula_says(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    latents, images = run(pipeline, "latent"), run(pipeline, "pt")
    raw_latents = family.unscale(pipeline.vae.config, latents)
    assert torch.equal(to_images(pipeline.vae, raw_latents), images)
    assert images.std() > 0.05
    assert images.shape == (1, 3, 8 * SIDE, 8 * SIDE)
    assert not torch.equal(to_images(pipeline.vae, latents), images)


@pytest.mark.parametrize("factor", [4, 16])
def test_the_scale_factor_is_the_models(factor: int) -> None:
    """What pipelines read off `block_out_channels` is the downscale."""
    levels = factor.bit_length()
    layers = (0,) * (levels - 1) + (1,)
    shape = {
        "block_out_channels": (8,) * levels,
        "encoder_layers": layers,
        "decoder_layers": layers,
    }
    pipeline = FAMILIES["sd"].pipeline(**shape)
    assert pipeline.vae_scale_factor == factor
    assert pipeline.image_processor.config.vae_scale_factor == factor
    images = run(pipeline, "pt", height=6 * factor, width=10 * factor)
    assert images.shape == (1, 3, 6 * factor, 10 * factor)


@torch.no_grad()
def denoised(predict: Callable[[Tensor, Tensor], Tensor], channels: int = 4) -> Tensor:
    """The two steps of `families.run` by hand: scaled latents of one image."""
    steps = scheduler()
    steps.set_timesteps(2)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, SIDE, SIDE, generator=generator)
    for t in steps.timesteps:
        latents = steps.step(predict(latents, t), t, latents).prev_sample
    return latents


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.filterwarnings("ignore:.*LDMPipeline.*:FutureWarning")  # diffusers deprecates it
@pytest.mark.parametrize("bottleneck", ["gaussian", "vq", "vq2", "fsq"])
def test_ldm(bottleneck: str) -> None:
    vae = make_vae(bottleneck=bottleneck, codebook_size=16)
    pipeline = ldm(vae)
    found = pipeline(generator=generator(), num_inference_steps=2, output_type="np").images
    latents = denoised(lambda z, t: pipeline.unet(z, t).sample)
    expected = to_images(vae, latents / vae.config.scaling_factor)
    torch.testing.assert_close(torch.from_numpy(found).movedim(-1, 1), expected, rtol=0, atol=1e-6)


def test_ldm_of_text() -> None:
    vae = make_vae()
    pipeline = ldm_text(vae)
    words = pipeline.tokenizer(
        [PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    states = pipeline.bert(words.input_ids)[0]
    latents = denoised(lambda z, t: pipeline.unet(z, t, encoder_hidden_states=states).sample)
    expected = to_images(vae, latents / vae.config.scaling_factor)
    torch.testing.assert_close(run(pipeline, "pt"), expected, rtol=0, atol=1e-6)


def test_dit() -> None:
    vae = make_vae()
    pipeline = dit(vae)
    label = torch.tensor([7])

    def predict(z: Tensor, t: Tensor) -> Tensor:
        both = pipeline.transformer(z, timestep=t[None], class_labels=label).sample
        return both[:, :4]  # the other half is the learned variance

    expected = to_images(vae, denoised(predict) / vae.config.scaling_factor)
    found = run(pipeline, "pt", [7], guidance_scale=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert run(pipeline, "pt", [7, 8], guidance_scale=4.0).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_tiling_and_slicing_change_no_picture(name: str) -> None:
    pipeline = FAMILIES[name].pipeline()
    prompts = [PROMPT, "b"]
    whole = run(pipeline, "pt", prompts)
    calls = []
    pipeline.vae.decoder.register_forward_hook(lambda _, args, __: calls.append(args[0].shape))
    pipeline.vae.tile_cells = 5
    pipeline.vae.enable_tiling()
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(run(pipeline, "pt", prompts), whole, rtol=0, atol=1e-5)
    assert len(calls) == 8
    assert {shape[0] for shape in calls} == {1}
    pipeline.vae.disable_tiling()
    pipeline.vae.disable_slicing()
    assert torch.equal(run(pipeline, "pt", prompts), whole)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_pipeline_is_cast_as_a_whole(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    exact = run(pipeline, "pt")
    pipeline.to(torch.bfloat16)
    assert pipeline.vae.dtype == torch.bfloat16
    latents, images = run(pipeline, "latent"), run(pipeline, "pt")
    assert latents.dtype == images.dtype == torch.bfloat16
    assert torch.equal(
        to_images(pipeline.vae, family.unscale(pipeline.vae.config, latents)), images
    )
    assert (images - exact).abs().mean() < 0.05


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # by itself
def test_xl_upcasts_a_model_that_wants_it() -> None:
    """SDXL asks `vae.post_quant_conv` for its dtype, and casts the VAE back afterwards."""
    pipeline = FAMILIES["sdxl"].pipeline(force_upcast=True)
    pipeline.to(torch.float16)
    seen = []
    pipeline.vae.decoder.register_forward_hook(lambda _, args, __: seen.append(args[0].dtype))
    images = run(pipeline, "pt")
    assert seen == [torch.float32]
    assert images.isfinite().all()
    assert pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("name", ["sd", "sdxl-channels", "sd3"])
@pytest.mark.parametrize("bottleneck", ["gaussian", "vq"])
def test_a_saved_pipeline_comes_back(
    name: str, bottleneck: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    pipeline = FAMILIES[name].pipeline(bottleneck=bottleneck, codebook_size=16)
    expected = run(pipeline, "pt")
    pipeline.save_pretrained(tmp_path)
    # diffusers saves no trace of a component that is None, and asks for it
    absent = {key: None for key in pipeline.components if key.endswith("_3")}
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True, **absent)
    quiet(loaded)
    assert type(loaded) is type(pipeline)
    assert type(loaded.vae) is LatentAutoencoder
    assert loaded.config["vae"] == ("codec.autoencoder", "LatentAutoencoder")
    assert torch.equal(run(loaded, "pt"), expected)


def test_another_vae_takes_the_place_of_a_saved_one(tmp_path: Path) -> None:
    """`from_pretrained(..., vae=ours)` on a directory that names AutoencoderKL."""
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    FAMILIES["sd"].build(theirs).save_pretrained(tmp_path)
    ours = make_vae()
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True, vae=ours)
    quiet(loaded)
    latents, images = run(loaded, "latent"), run(loaded, "pt")
    assert torch.equal(to_images(ours, latents / 0.5), images)


@pytest.mark.parametrize("component", ["vae", "vqvae"])
@pytest.mark.filterwarnings("ignore:.*LDMPipeline.*:FutureWarning")
def test_codec_takes_the_vae_of_a_pipeline(
    component: str, tmp_path: Path, pixels: Callable[..., Any]
) -> None:
    vae = make_vae()
    pipeline = FAMILIES["sd"].build(vae) if component == "vae" else ldm(vae)
    pipeline.save_pretrained(tmp_path / "pipeline")
    vae.save_pretrained(tmp_path / "alone")
    codec = Codec.from_pretrained(tmp_path / "pipeline", dtype="float32")
    alone = Codec.from_pretrained(tmp_path / "alone", dtype="float32")
    assert codec.info is not None
    assert alone.info is not None
    assert codec.info.latent_id == alone.info.latent_id
    image = pixels(40, 48)
    assert torch.equal(codec.encode(image), alone.encode(image))
    data = codec.compress(image)
    assert alone.decompress(data) == codec.decompress(data)
