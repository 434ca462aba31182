"""The parts of a measured prior: baselines, classifier, neighbours, pictures, what is kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from codec import images
from eval.distribution.features import extract
from eval.distribution.image_sets import open_images
from eval.priors.baselines import gaussian_latents, take_turns
from eval.priors.classifier import ClassifierSettings, classify, train_classifier
from eval.priors.kept import Keeper, Tensors
from eval.priors.neighbours import nearest
from eval.priors.sheets import class_sheet, comparison_sheet, save_webp
from tests.eval.backbones import random_backbone

Pixels = NDArray[np.uint8]


def test_gaussian_latents_have_the_moments_of_real_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(1, 2, 4, 4, generator=generator), torch.full((1, 2, 4, 4), 0.5)
    real = mean + std * torch.randn(2000, 2, 4, 4, generator=generator)
    drawn = gaussian_latents(real, 2000, by_position=True)
    assert torch.allclose(drawn.mean(0), real.mean(0), atol=0.06)
    assert torch.allclose(drawn.std(0), real.std(0), atol=0.04)
    by_channel = gaussian_latents(real, 2000, by_position=False)
    assert torch.allclose(by_channel.mean((0, 2, 3)), real.mean((0, 2, 3)), atol=0.02)
    spread = [part.mean(0).std(dim=(1, 2)).max() for part in (by_channel, real)]
    assert spread[0] < 0.05 < spread[1]
    assert torch.equal(drawn, gaussian_latents(real, 2000, by_position=True))
    assert not torch.equal(drawn, gaussian_latents(real, 2000, by_position=True, seed=1))


def test_classes_take_turns_as_long_as_they_last() -> None:
    labels = ["b", "a", "a", "b", "a", "c"]
    assert take_turns(labels, 4) == [1, 0, 5, 2]
    assert take_turns(labels, 99) == [1, 0, 5, 2, 3, 4]
    drawn = take_turns(labels, 3, seed=3)
    assert sorted(labels[index] for index in drawn) == ["a", "b", "c"]
    assert drawn == take_turns(labels, 3, seed=3)
    assert take_turns([None, None], 1) == [0]


def test_a_classifier_learns_what_can_be_learned_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    latents = torch.randn(96, 4, 16, 16, generator=generator)
    latents[:, 0] += (labels - 1)[:, None, None] * 1.0
    settings = ClassifierSettings(width=8, epochs=30, batch_size=16)
    state, models = torch.get_rng_state(), []
    for _ in range(2):
        models.append(
            train_classifier(latents[:48], latents[:48].flip(-1), labels[:48], 3, settings)
        )
    assert torch.equal(torch.get_rng_state(), state)
    found = classify(models[0], latents[48:])
    assert (found == labels[48:]).double().mean() > 0.9
    assert torch.equal(found, classify(models[1], latents[48:]))
    with torch.inference_mode():
        assert torch.equal(models[0](latents[:2]), models[1](latents[:2]))


def test_a_copy_is_found_also_when_it_is_mirrored(
    tmp_path: Path, pixels: Callable[..., Pixels]
) -> None:
    for seed in range(6):
        images.save(pixels(48, 48, seed), tmp_path / f"{seed}.png")
    real, network = open_images(tmp_path, 48), random_backbone()
    features = extract(real, network)
    asked = [real.load(4), np.ascontiguousarray(real.load(2)[:, ::-1])]
    first, second = nearest(asked, real, features, network)
    assert (first[0].source, first[0].lpips, first[0].is_mirrored) == ("4.png", 0.0, False)
    assert (second[0].source, second[0].lpips, second[0].is_mirrored) == ("2.png", 0.0, True)
    assert first[1].lpips > 0
    assert first[1].source != "4.png"


def test_pictures_have_a_row_a_class_and_a_limit_in_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sheet = class_sheet([("dress", [noise, noise]), ("t-shirt", [noise])], side=64)
    assert sheet.shape[0] == 2 * 68
    assert (sheet[:64, -68:-4] == noise).all()
    assert (sheet[68:, -68:] == 255).all()  # the second class has one picture
    assert (sheet[:64, :40] < 128).any()  # its name
    group = [(noise, "sample"), (noise, "0.123")]
    assert comparison_sheet([group] * 5, columns=2, side=64).shape[0] == 3 * (68 + 21)
    path = tmp_path / "sheet.webp"
    save_webp(np.tile(noise, (4, 4, 1)), path, most_bytes=20_000)
    assert path.stat().st_size <= 20_000
    with PIL.Image.open(path) as picture:
        assert picture.format == "WEBP"


def test_what_is_kept_is_not_made_again_and_damage_is_mended(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tensors:
        made.append(1)
        return {"x": torch.arange(3.0)}

    keeper = Keeper(tmp_path)
    for _ in range(2):
        assert torch.equal(keeper.get("kind", "a", 1, make=make)["x"], torch.arange(3.0))
    assert len(made) == 1
    keeper.get("kind", "a", 2, make=make)
    assert len(made) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert torch.equal(keeper.get("kind", "a", 1, make=make)["x"], torch.arange(3.0))
    assert len(made) == 3
    Keeper(None).get("kind", "a", 1, make=make)
    assert len(made) == 4


def test_labels_are_folders_and_sets_are_told_apart(
    tmp_path: Path, pixels: Callable[..., Pixels]
) -> None:
    for name in ("a/1", "b/2", "3"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        images.save(pixels(40, 64), path)
    found = open_images(tmp_path, 32)
    assert found.labels == (None, "a", "b")
    assert [one.shape for one in found] == [(32, 32, 3)] * 3
    assert found.pick([2, 0]).labels == ("b", None)
    prints = {found.fingerprint, open_images(tmp_path, 40).fingerprint}
    assert len(prints | {found.pick([0]).fingerprint}) == 3
    assert open_images(tmp_path, 32).fingerprint == found.fingerprint
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="found no images in"):
        open_images(tmp_path / "c")
