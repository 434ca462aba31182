"""The encoder of dataset jobs: batches, memory that runs out, latents that are not finite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import Codec, backbone
from codec.codes import codes_of
from codec.dataset.encoder import EncodedImage, Encoder, NoPosteriorError, find_model
from tests.codec.foreign_models import save_model
from tests.conftest import Pixels, make_pixels


def batch(count: int, height: int = 40, width: int = 56) -> Pixels:
    return np.stack([make_pixels(height, width, seed) for seed in range(count)])


def latents(found: list[EncodedImage | str]) -> list[np.ndarray]:
    assert all(isinstance(one, EncodedImage) for one in found), found
    return [one.raw_latents for one in found if isinstance(one, EncodedImage)]


def encoder(model: Path, dtype: str = "float32", **wishes: Any) -> Encoder:
    return Encoder(find_model(str(model), "cpu", dtype, **wishes))


def test_a_batch_gives_what_the_codec_gives_of_each_image(model_dir: Path) -> None:
    pixels = batch(3)
    codec = Codec.from_pretrained(model_dir, device="cpu", dtype="float32")
    for image, found in zip(pixels, latents(encoder(model_dir).encode(pixels)), strict=True):
        scaled = torch.from_numpy(found)[None] * 0.5 - 0.125  # scaling 0.5, shift 0.25
        torch.testing.assert_close(scaled, codec.encode(image), atol=1e-5, rtol=0)


def test_sides_that_are_no_multiples_are_padded_as_by_the_codec(model_dir: Path) -> None:
    pixels = batch(2, 43, 61)
    codec = Codec.from_pretrained(model_dir, device="cpu", dtype="float32")
    for image, found in zip(pixels, latents(encoder(model_dir).encode(pixels)), strict=True):
        assert found.shape == (4, 6, 8)
        scaled = torch.from_numpy(found)[None] * 0.5 - 0.125
        torch.testing.assert_close(scaled, codec.encode(image), atol=1e-5, rtol=0)


def test_latents_do_not_depend_on_the_batch_or_the_threads(model_dir: Path) -> None:
    pixels, found = batch(5), encoder(model_dir, "bfloat16")
    together = latents(found.encode(pixels))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [latents(found.encode(pixels[k : k + 1]))[0] for k in range(5)]
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Lets the network run out of memory with more than `most` images; returns the tried sizes."""
    tried: list[int] = []
    run = Encoder._run

    def limited(self: Encoder, model: Any, pixels: Pixels) -> list[torch.Tensor]:
        tried.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(self, model, pixels)

    monkeypatch.setattr(Encoder, "_run", limited)
    return tried


def test_a_batch_is_halved_until_memory_holds_it(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = batch(7)
    expected = latents(encoder(model_dir).encode(pixels))
    tried = limit_memory(monkeypatch, most=2)
    found = encoder(model_dir)
    for one, other in zip(latents(found.encode(pixels)), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert found.batch_limit == 1
    tried.clear()
    found.encode(pixels)
    assert tried == [1] * 7, "the limit is kept"


def test_an_image_that_no_memory_holds_is_told(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, most=0)
    assert (
        encoder(model_dir).encode(batch(2))
        == ["cpu has too little memory for 56x40 pixels: give a smaller --size"] * 2
    )


def test_other_errors_are_not_taken_for_memory(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Encoder, model: Any, pixels: Pixels) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Encoder, "_run", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        encoder(model_dir).encode(batch(1))


def spoil(monkeypatch: pytest.MonkeyPatch, *, in_float32: bool) -> None:
    """Lets the second image of a batch of three overflow."""
    run = Encoder._run

    def spoiled(self: Encoder, model: Any, pixels: Pixels) -> list[torch.Tensor]:
        values = run(self, model, pixels)
        if len(values) == 3 or in_float32:
            values[len(values) // 2] = values[len(values) // 2] * torch.inf
        return values

    monkeypatch.setattr(Encoder, "_run", spoiled)


def test_what_is_not_finite_is_encoded_again_in_float32(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = batch(3)
    exact = latents(encoder(model_dir).encode(pixels))
    rough = latents(encoder(model_dir, "bfloat16").encode(pixels))
    spoil(monkeypatch, in_float32=False)
    found = encoder(model_dir, "bfloat16").encode(pixels)
    for one, expected in zip(latents(found), [rough[0], exact[1], rough[2]], strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-6)
    assert np.abs(rough[1] - exact[1]).max() > 1e-4, "or this test shows nothing"
    assert [one.is_retried for one in found if isinstance(one, EncodedImage)] == [0, 1, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_not_finite_in_float32_is_an_error(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    spoil(monkeypatch, in_float32=True)
    first, second, third = encoder(model_dir, dtype).encode(batch(3))
    assert isinstance(second, str)
    assert "not finite" in second
    assert isinstance(first, EncodedImage)
    assert isinstance(third, EncodedImage)


def test_large_images_go_through_in_tiles(model_dir: Path) -> None:
    found = encoder(model_dir)
    pixels = batch(2, 64, 1100)  # more than a tile of 1024 wide
    whole = backbone.encode_pixels(
        found._model.autoencoder, np.pad(pixels[1], ((0, 0), (0, 4), (0, 0)), mode="edge")
    )
    np.testing.assert_allclose(latents(found.encode(pixels))[1], whole, atol=1e-5)


@pytest.mark.parametrize("name", ["kl", "kl-f8c16"])
def test_the_posterior_of_foreign_models(name: str, tmp_path: Path) -> None:
    found = encoder(save_model(name, tmp_path), posterior=True)
    pixels = batch(2, 32, 48)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = found._model.autoencoder.encode(x).latent_dist
    for k, image in enumerate(found.encode(pixels)):
        assert isinstance(image, EncodedImage)
        assert image.log_variance is not None
        np.testing.assert_allclose(image.raw_latents, posterior.mean[k], atol=1e-5)
        np.testing.assert_allclose(image.log_variance, posterior.logvar[k], atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "dc", "vq", "vqmodel"])
def test_models_without_a_posterior_are_told_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(NoPosteriorError, match="no distribution"):
        find_model(str(save_model(name, tmp_path)), "cpu", None, posterior=True)


@pytest.mark.parametrize("name", ["vq", "vq2", "fsq", "vqmodel"])
def test_codes_are_the_indices_of_the_model(name: str, tmp_path: Path) -> None:
    directory = save_model(name, tmp_path)
    found = encoder(directory)
    codes = codes_of(found._model.autoencoder)
    assert codes is not None
    pixels = batch(2, 32, 48)
    for image, one in zip(pixels, found.encode(pixels), strict=True):
        assert isinstance(one, EncodedImage)
        assert one.indices is not None
        expected = backbone.encode_indices(found._model.autoencoder, codes, image)
        for grid, other in zip(one.indices, expected, strict=True):
            np.testing.assert_array_equal(grid, other)
        np.testing.assert_array_equal(one.raw_latents, codes.to_latents(expected))
