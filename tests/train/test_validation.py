"""Held-out figures against what they should be by hand, for each kind of network."""

import copy
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn
from torch.distributions import Normal, kl_divergence

from codec.autoencoder import LatentAutoencoder
from eval.latents.posterior import KL_EDGES
from eval.metrics import psnr
from train import bounds, validation
from train.bounds import is_bound
from train.held_out import HeldOut, load_held_out
from train.samples.factors import SHAPES, FactorImages
from train.samples.sources import DataError
from train.sections import TrainConfig
from train.validation import Validation, make_validation

MakeConfig = Callable[..., TrainConfig]
Pixels = Callable[..., np.ndarray]

TINY: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}
BOUND: dict[str, dict[str, Any]] = {
    "model": {"posterior_std": None},
    "loss": {
        "learned_logvar": True,
        "kl_weight": 1.0,
        "kl_reduction": "pixel",
        "perceptual_weight": 0.0,
    },
}


@pytest.fixture
def held_out(pixels: Pixels) -> HeldOut:
    """Ten images, more than a batch, of three classes and without one."""
    stacked = np.stack([pixels(64, 64, seed) for seed in range(10)]).transpose(0, 3, 1, 2)
    return HeldOut(torch.from_numpy(stacked), torch.arange(10) % 4 - 1, "ten images")


def tiny(**arguments: Any) -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(**{**TINY, **arguments}).eval()


class Distance(nn.Module):
    """Stands for LPIPS."""

    net_name = "toy"

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return (image - reference).abs().mean((1, 2, 3))


def test_a_gaussian_model(held_out: HeldOut) -> None:
    model, step = tiny(posterior_std=None), 0.05
    found = Validation(held_out, step, Distance()).measure(model, Accelerator(cpu=True))
    x = held_out.pixels / 127.5 - 1
    with torch.no_grad():
        posterior = model.encode(x).latent_dist
        symbols = torch.round(posterior.mean / step)
        output = torch.round((model.decode(symbols * step).sample.clamp(-1, 1) + 1) * 127.5)
    pairs = zip(held_out.pixels, output.byte(), strict=True)
    expected = [psnr(one.permute(1, 2, 0), two.permute(1, 2, 0)) for one, two in pairs]
    assert found["val/psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert found["val/lpips_toy"] == pytest.approx(
        float((output - held_out.pixels).abs().mean()) / 127.5, rel=1e-4
    )
    rates = [validation.order0_bits(image.numpy()) / 64**2 for image in symbols]
    assert found["val/rate_bpp"] == pytest.approx(np.mean(rates), rel=1e-3)
    bits = posterior.kl().mean() / posterior.mean[0].numel() / math.log(2)
    assert found["health/kl_bits"] == pytest.approx(float(bits), rel=1e-4)
    assert found["health/kl_bits_min"] < found["health/kl_bits"] < found["health/kl_bits_max"]
    assert found["health/latent_std"] == pytest.approx(float(posterior.mean.std()), rel=0.01)
    active = posterior.mean.var((0, 2, 3)) > 0.01
    assert found["health/active_units"] == pytest.approx(float(active.float().mean()))
    assert 0 < found["health/latent_correlation"] <= 1
    assert not any("bpd" in name or "codebook" in name for name in found)


def test_details_of_a_gaussian_model(held_out: HeldOut) -> None:
    model, figures = tiny(posterior_std=None), Validation(held_out, 0.05, None)
    assert figures.details == {}
    found = figures.measure(model, Accelerator(cpu=True))
    details = json.loads(json.dumps(figures.details, allow_nan=False))
    assert details == figures.details
    with torch.no_grad():
        posterior = model.encode(held_out.pixels / 127.5 - 1).latent_dist
    normal = Normal(posterior.mean, posterior.std)
    bits = kl_divergence(normal, Normal(0.0, 1.0)).movedim(1, 0).flatten(1) / math.log(2)
    assert details["held_out"] == "ten images"
    assert details["kl_bits_by_channel"] == pytest.approx(bits.mean(1).tolist(), rel=1e-4)
    assert max(details["kl_bits_by_channel"]) == found["health/kl_bits_max"]
    assert details["kl_edges"] == [*KL_EDGES[:-1], None]
    assert [sum(row) for row in details["kl_histogram"]] == [bits.shape[1]] * 4
    assert {len(row) for row in details["kl_histogram"]} == {len(KL_EDGES) - 1}
    correlation = torch.corrcoef(posterior.mean.movedim(1, 0).flatten(1).double())
    assert np.allclose(details["correlation"], correlation, atol=1e-4)
    assert "codebooks" not in details


@pytest.mark.parametrize(
    ("arguments", "suffixes", "bits"),
    [
        ({"bottleneck": "vq", "codebook_size": 32}, ("",), (5.0,)),
        ({"bottleneck": "fsq", "fsq_levels": (8, 8, 8, 8)}, ("",), (12.0,)),
        ({"bottleneck": "vq2", "codebook_size": 16}, ("_top", "_bottom"), (4.0, 4.0)),
    ],
)
def test_a_discrete_model(
    held_out: HeldOut, arguments: dict[str, Any], suffixes: tuple[str, ...], bits: tuple[float, ...]
) -> None:
    model = tiny(**arguments)
    figures = Validation(held_out, 0.4, None)
    found = figures.measure(model, Accelerator(cpu=True))
    with torch.no_grad():
        indices = model.encode(held_out.pixels / 127.5 - 1).indices
    fixed = entropy = 0.0
    details = json.loads(json.dumps(figures.details, allow_nan=False))
    assert details["held_out"] == "ten images"
    assert not any(name.startswith("kl_") for name in details)
    for book, codes, suffix, each in zip(
        details["codebooks"], indices, suffixes, bits, strict=True
    ):
        assert (book["size"], book["indices"]) == (2**each, codes.numel())
        assert book["used"] == len(codes.unique())
        assert book["perplexity"] == found[f"health/perplexity{suffix}"]
        assert book["perplexity"] == pytest.approx(2 ** book["entropy_bits"])
    for codes, suffix, each in zip(indices, suffixes, bits, strict=True):
        _, counts = torch.unique(codes, return_counts=True)
        shares = counts / counts.sum()
        of_book = -float((shares * shares.log2()).sum())
        assert found[f"health/perplexity{suffix}"] == pytest.approx(2**of_book, rel=1e-3)
        assert found[f"health/codebook_usage{suffix}"] == len(counts) / 2**each
        assert found[f"health/indices_per_code{suffix}"] == codes.numel() / 2**each
        fixed += codes[0].numel() * each / 64**2
        entropy += codes[0].numel() * of_book / 64**2
    assert found["val/raw_rate_bpp"] == pytest.approx(fixed)
    assert found["val/rate_bpp"] == pytest.approx(entropy, rel=1e-3)
    assert "health/kl_bits" not in found
    assert math.isfinite(found["health/latent_std"])


def test_labels_reach_a_conditional_model_only(held_out: HeldOut) -> None:
    model, accelerator = tiny(num_classes=3), Accelerator(cpu=True)
    plain = Validation(held_out, 0.4, None).measure(model, accelerator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.shape[0] == 3 and not parameter.any():  # zero-initialised embeddings
                parameter[1] += 1.0
                assert "class" in name or "label" in name or "embed" in name
    assert Validation(held_out, 0.4, None).measure(model, accelerator) != plain
    unlabelled = HeldOut(held_out.pixels, torch.full((10,), -1), "unlabelled")
    assert Validation(unlabelled, 0.4, None).measure(model, accelerator) == plain


def test_diffusers_own_autoencoder_with_bounds(held_out: HeldOut) -> None:
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).eval()
    small = HeldOut(held_out.pixels[:3, :, :16, :16], held_out.labels[:3], "small")
    figures = Validation(small, 0.4, None, with_bounds=True)
    found = figures.measure(model, Accelerator(cpu=True))
    assert found["val/iwae_bpd"] < found["val/elbo_bpd"]
    assert found == figures.measure(model, Accelerator(cpu=True))
    pictures = figures.pictures(model, Accelerator(cpu=True))
    assert pictures["reconstructions"].shape == (36, 3 * 20 - 4, 3)
    assert pictures["interpolation"].shape == (16, 8 * 20 - 4, 3)


def test_a_network_that_says_nothing_has_the_bits_of_its_likelihood(held_out: HeldOut) -> None:
    """Posterior N(0, I) and gray output: both bounds are the fitted Laplace's own code length."""

    def encode(x: torch.Tensor) -> Any:
        zeros = torch.zeros(len(x), 2, 1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=zeros, logvar=zeros, std=zeros + 1))

    def decode(z: torch.Tensor) -> Any:
        return SimpleNamespace(sample=torch.zeros(len(z), 3, 64, 64))

    model = SimpleNamespace(config={}, encode=encode, decode=decode)
    inside = HeldOut(held_out.pixels.clamp(1, 254), held_out.labels, "no open tails")
    found = bounds.measure_bounds(model, inside, Accelerator(cpu=True))
    distance = (inside.pixels.double() - 127.5).abs().mean().item()
    assert found.scale == pytest.approx(distance, rel=0.01)
    code_length = math.log2(2 * math.e * distance)  # of the density, which is flat over a level
    assert found.elbo_bits_per_dim == pytest.approx(code_length, abs=1e-3)
    assert found.iwae_bits_per_dim == pytest.approx(found.elbo_bits_per_dim, abs=1e-12)


def test_two_processes_find_what_one_finds(
    held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads stand for processes; what they gather goes through a barrier."""
    model = tiny(posterior_std=None)
    accelerator = Accelerator(cpu=True)
    figures = Validation(held_out, 0.1, Distance(), with_bounds=True)
    alone = figures.measure(model, accelerator)
    barrier, rank, slots = threading.Barrier(2), threading.local(), {}
    shares: list[list[int]] = []

    def gather(values: list[Any]) -> list[Any]:
        slots[rank.number] = values
        barrier.wait(timeout=60)
        gathered = copy.deepcopy([*slots[0], *slots[1]])  # as pickled by real processes
        barrier.wait(timeout=60)
        return gathered

    def measure(number: int) -> None:
        rank.number = number
        process = SimpleNamespace(
            process_index=number,
            num_processes=2,
            device=accelerator.device,
            autocast=accelerator.autocast,
        )
        shares.append([n for part in held_out.shares(model, process) for n in part.numbers])
        results[number] = figures.measure(model, process)

    results: dict[int, dict[str, float]] = {}
    monkeypatch.setattr(validation, "gather_object", gather)
    monkeypatch.setattr(bounds, "gather_object", gather)
    threads = [threading.Thread(target=measure, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shares) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert results[0] == pytest.approx(alone, rel=1e-5)
    assert results[1] == pytest.approx(alone, rel=1e-5)


def test_pictures_are_of_what_was_measured(held_out: HeldOut) -> None:
    figures, accelerator = Validation(held_out, 0.4, None), Accelerator(cpu=True)
    pictures = figures.pictures(tiny(num_classes=3), accelerator)
    grid = pictures["reconstructions"]
    assert grid.shape == (2 * 64 + 4, 8 * 68 - 4, 3)
    assert np.array_equal(grid[:64, :64], held_out.pixels[0].permute(1, 2, 0).numpy())
    assert np.array_equal(grid[:64, -64:], held_out.pixels[9].permute(1, 2, 0).numpy())
    strip = pictures["interpolation"]
    assert strip.shape == (64, 8 * 68 - 4, 3)
    assert np.abs(grid[68:, :64].astype(int) - strip[:, :64]).max() <= 1
    assert figures.pictures(tiny(), SimpleNamespace(is_main_process=False)) == {}


@pytest.fixture
def make_bound(make_config: MakeConfig) -> MakeConfig:
    """Makes a configuration whose objective is a bound; latents are vectors, as tc_weight needs."""
    layers = [0, 0, 0, 0, 0, 1]
    shape = {"block_out_channels": [8] * 6, "encoder_layers": layers, "decoder_layers": layers}

    def make(section: str, **values: Any) -> TrainConfig:
        sections = {**BOUND, "model": {**BOUND["model"], **shape}}
        return make_config(**{**sections, section: {**sections.get(section, {}), **values}})

    return make


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("loss", {"kl_schedule": "linear", "kl_warmup": 100}),
        ("loss", {"logvar_init": -1.0}),
        (
            "model",
            {
                "architecture": "autoencoder_kl",
                "posterior_std": 0.14,  # of LatentAutoencoder alone
                "block_out_channels": [32] * 6,
            },
        ),
        ("adversarial", {"disc_start": 100}),
    ],
)
def test_a_bound_counts_as_one(
    make_bound: MakeConfig, section: str, values: dict[str, Any]
) -> None:
    assert is_bound(make_bound(section, **values))


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("model", {"posterior_std": 0.14}),
        ("model", {"bottleneck": "fsq"}),
        ("model", {"freeze_encoder": True, "init_from": "somewhere"}),
        ("loss", {"learned_logvar": False}),
        ("loss", {"l1_weight": 0.5}),
        ("loss", {"l2_weight": 0.1}),
        ("loss", {"charbonnier_weight": 0.1}),
        ("loss", {"multiscale_weight": 0.1}),
        ("loss", {"gradient_weight": 0.1}),
        ("loss", {"wavelet_weight": 0.1}),
        ("loss", {"perceptual_weight": 0.1}),
        ("loss", {"kl_weight": 4.0}),
        ("loss", {"kl_reduction": "latent"}),
        ("loss", {"kl_target": 1.0}),
        ("loss", {"free_bits": 0.1}),
        ("loss", {"tc_weight": 0.1}),
        ("adversarial", {"disc_weight": 0.1}),
        ("adversarial", {"feature_matching_weight": 0.1}),
        ("regularizer", {"latent_noise": 0.1}),
        ("regularizer", {"quantize_step": 0.4}),
        ("regularizer", {"equivariance_probability": 0.1}),
        ("distillation", {"teacher": "somewhere"}),
    ],
)
def test_what_is_added_to_a_bound_leaves_none(
    make_bound: MakeConfig, section: str, values: dict[str, Any]
) -> None:
    assert not is_bound(make_bound(section, **values))


def test_bounds_are_reported_where_the_objective_is_one(
    make_config: MakeConfig, photos: Path
) -> None:
    run = {"validation_folder": str(photos)}
    of_bound = make_validation(make_config(**BOUND, run=run), None, None, ())
    fixed = make_validation(make_config(**BOUND, run=run), 0.14, None, ())
    assert of_bound is not None
    assert fixed is not None
    assert of_bound.with_bounds
    assert not fixed.with_bounds  # the network has a constant deviation, whatever is configured
    assert fixed.step == pytest.approx(0.14 * math.sqrt(12))


def test_rendered_images_follow_those_trained_on(make_config: MakeConfig) -> None:
    data = {"folders": [], "factors": 40, "crop_size": 16, "labels": True}
    found = load_held_out(make_config(data=data, run={"validation_images": 6}), SHAPES)
    source = FactorImages(count=46, size=16)
    assert found is not None
    assert found.pixels.shape == (6, 3, 16, 16)
    assert np.array_equal(found.pixels[2].permute(1, 2, 0).numpy(), source.load(42))
    assert found.labels.tolist() == [source.label(40 + i) for i in range(6)]
    assert load_held_out(make_config(), ()) is None


def test_labels_are_those_of_training(
    make_config: MakeConfig, pixels: Pixels, tmp_path: Path
) -> None:
    for number, name in enumerate(("hat", "shoe")):
        (tmp_path / "held" / name).mkdir(parents=True)
        image = PIL.Image.fromarray(pixels(80, 100, number))
        image.save(tmp_path / "held" / name / "a.png")
    sections = {"run": {"validation_folder": str(tmp_path / "held")}, "data": {"labels": True}}
    found = load_held_out(make_config(**sections), ("coat", "hat", "shoe"))
    assert found is not None
    assert found.labels.tolist() == [1, 2]
    assert np.array_equal(found.pixels[0].permute(1, 2, 0).numpy(), pixels(80, 100, 0)[8:72, 18:82])
    with pytest.raises(DataError, match=r"in a folder hat, expected .* coat, shoe"):
        load_held_out(make_config(**sections), ("coat", "shoe"))


def test_vector_latents_are_shown_whole_images(make_config: MakeConfig, photos: Path) -> None:
    """With latents of 1x1 a larger picture than a crop would be another task."""
    layers = (0, 0, 0, 0, 0, 1)
    model = {
        "block_out_channels": (8,) * 6,
        "encoder_layers": layers,
        "decoder_layers": layers,
    }
    run = {"validation_folder": str(photos)}
    vector = load_held_out(make_config(model=model, run=run), ())
    spatial = load_held_out(make_config(run=run), ())
    assert vector is not None
    assert spatial is not None
    assert vector.pixels.shape[-2:] == (32, 32)
    assert spatial.pixels.shape[-2:] == (64, 64)


def test_no_held_out_image_is_an_error(
    make_config: MakeConfig, tmp_path: Path, photos: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("another.png\n")
    run = {"validation_folder": str(photos), "validation_names": str(names)}
    with pytest.raises(DataError, match="found no held-out image"):
        make_validation(make_config(run=run), None, None, ())
