"""LatentPriorPipeline: a pipeline of diffusers with one of our autoencoders as its vae."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from codec.backbone import load_autoencoder
from codec.prior import LatentPriorPipeline, open_prior
from codec.prior.directory import PriorError, read_prior
from codec.prior.opening import DiffusionPrior
from codec.prior.process import training_scheduler
from tests.codec.prior.tiny_priors import CLASSES, SIDE, tiny_denoiser, write_tiny_prior
from tests.conftest import make_pixels

SIZE = 8 * SIDE


@pytest.fixture(scope="module")
def prior_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny", model_dir)


@pytest.fixture(scope="module")
def pipe(model_dir: Path) -> Any:
    scheduler = training_scheduler("flow", "linear", False)
    vae = load_autoencoder(model_dir).float().eval()
    return LatentPriorPipeline(tiny_denoiser("unet"), scheduler, vae, class_names=CLASSES)


def picture(seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(make_pixels(SIZE, SIZE, seed))


def test_it_generates_what_its_latents_decode_to(pipe: Any) -> None:
    latents = pipe(["dress", None], seeds=[1, 2], output_type="latent").images
    assert latents.shape == (2, 4, SIDE, SIDE)
    images = pipe(["dress", None], seeds=[1, 2]).images
    config = pipe.vae.config
    raw = latents / config.scaling_factor + config.shift_factor
    by_hand = pipe.vae.decode(raw).sample.detach().clamp(-1, 1)
    wanted = ((by_hand / 2 + 0.5) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(images).astype(int) - wanted).max() <= 1
    (array,) = pipe([0, None], seeds=[1, 2], output_type="np", return_dict=False)
    assert array.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_allclose(array * 255, np.stack(images), atol=1)


def test_names_and_numbers_mean_the_same(pipe: Any) -> None:
    settings = {"seeds": [1], "num_inference_steps": 3, "output_type": "latent"}
    assert torch.equal(pipe(["hat"], **settings).images, pipe([1], **settings).images)
    other = pipe(["dress"], **settings).images
    assert not torch.equal(pipe(["hat"], **settings).images, other)
    nothing = pipe(num_images=1, **settings).images
    assert torch.equal(nothing, pipe([None], **settings).images)


def test_it_is_a_standard_directory(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    loaded = LatentPriorPipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.vae) is type(pipe.vae)
    assert isinstance(loaded.scheduler, FlowMatchEulerDiscreteScheduler)
    assert loaded.class_names == CLASSES
    settings = {"seeds": [3], "num_inference_steps": 4, "output_type": "latent"}
    assert torch.equal(pipe(["hat"], **settings).images, loaded(["hat"], **settings).images)


def test_without_a_vae_it_gives_latents(prior_dir: Path) -> None:
    bare = LatentPriorPipeline.from_pretrained(prior_dir)
    assert bare.vae is None
    assert bare(["hat"], output_type="latent").images.shape == (1, 4, SIDE, SIDE)
    with pytest.raises(PriorError, match=r"no autoencoder in this pipeline.*open_prior"):
        bare(["hat"], num_inference_steps=1)


def test_image_to_image_goes_as_far_as_its_strength(pipe: Any) -> None:
    image = picture()
    unchanged = pipe.decode(pipe.encode(pipe._pixels(image, 1)))

    def distance(strength: float) -> float:
        (found,) = pipe(["hat"], image=image, strength=strength, output_type="pt").images
        return float((2 * found - 1 - unchanged[0]).abs().mean())

    assert distance(0.05) < distance(0.5) < distance(1.0)


def test_inpainting_keeps_what_is_black_to_the_pixel(pipe: Any) -> None:
    image, mask = picture(), np.zeros((SIZE, SIZE), np.uint8)
    mask[16:40, 8:32] = 255
    (found,) = pipe(["hat"], image=image, mask_image=PIL.Image.fromarray(mask)).images
    changed = (np.asarray(found) != np.asarray(image)).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.9


def test_what_is_known_reaches_what_is_not(pipe: Any) -> None:
    """The network sees the image around a hole: another image gives another filling."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[16:40, 8:32] = 255
    fillings = [
        np.asarray(
            pipe(["hat"], image=picture(seed), mask_image=PIL.Image.fromarray(mask)).images[0]
        )
        for seed in (0, 1)
    ]
    assert (fillings[0][mask == 255] != fillings[1][mask == 255]).mean() > 0.1


@pytest.mark.parametrize("name", ["unet-text", "dit-text"])
def test_texts_are_precomputed_embeddings(name: str, model_dir: Path) -> None:
    scheduler = training_scheduler("epsilon", "scaled_linear", False)
    assert isinstance(scheduler, DDIMScheduler)
    pipe = LatentPriorPipeline(tiny_denoiser(name), scheduler, load_autoencoder(model_dir).float())
    texts = torch.randn(2, 5, 6)
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    found = pipe(prompt_embeds=texts, seeds=[1, 1], **settings).images
    assert (found[0] - found[1]).abs().max() > 1e-3
    # Without guidance the empty text is not looked at.
    apart = pipe(prompt_embeds=texts[:1], seeds=[1], **settings).images
    torch.testing.assert_close(apart[0], found[0], rtol=0, atol=1e-4)
    with pytest.raises(PriorError, match=r"expected prompt_embeds \(B, tokens, 6\)"):
        pipe(num_images=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"class_labels": ["coat"]}, "found class 'coat', expected one of dress, hat"),
        ({"class_labels": [3]}, "found class 3, expected 0 to 2"),
        ({"class_labels": [0, 1], "seeds": [1]}, "found 2, 1 labels"),
        ({"num_images": 0}, "found 0 images"),
        ({"prompt_embeds": torch.zeros(1, 2, 3)}, "trained without texts"),
        ({"mask_image": torch.zeros(1, 1, SIZE, SIZE)}, "a mask without an image"),
        ({"image": torch.zeros(1, 3, 128, 128)}, "16x16 cells, expected 8x8"),
        (
            {"image": torch.zeros(1, 3, SIZE, SIZE), "mask_image": torch.zeros(1, 1, 8, 8)},
            "expected 1 of 64x64 pixels",
        ),
        ({"sampler": "heun"}, "sampler heun"),
    ],
)
def test_wrong_arguments(pipe: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PriorError, match=sentence):
        pipe(**arguments)


def test_open_prior_decodes_by_the_codec_that_prior_json_names(prior_dir: Path) -> None:
    prior = open_prior(prior_dir, device="cpu", dtype="float32")
    assert isinstance(prior, DiffusionPrior)
    assert prior.info == read_prior(prior_dir)
    calls: list[int] = []
    labels = [0, 1, None, 2]
    found = list(
        prior.sample(labels, [1, 2, 3, 4], steps=3, batch_size=3, advance=lambda: calls.append(1))
    )
    assert [one.shape for one in found] == [(SIZE, SIZE, 3)] * 4
    assert len(calls) == 2 * 3
    again = next(iter(prior.sample([None], [3], steps=3)))
    assert np.abs(again.astype(int) - found[2]).max() <= 1
    with pytest.raises(PriorError, match="2 labels and 1 seeds"):
        next(iter(prior.sample([0, 1], [1])))


def test_offload_and_compile_leave_the_images_alone(pipe: Any) -> None:
    settings = {"seeds": [3], "num_inference_steps": 2, "output_type": "latent"}
    wanted = pipe(["hat"], **settings).images
    whole = pipe.denoiser
    try:
        pipe.denoiser = torch.compile(whole, backend="aot_eager")
        torch.testing.assert_close(pipe(["hat"], **settings).images, wanted, rtol=0, atol=1e-4)
    finally:
        pipe.denoiser = whole
