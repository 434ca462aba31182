"""Sampling beside DiTPipeline on tiny networks: the same transformer, turns, and a stand-in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from codec import console
from codec.prior import open_prior
from eval import cli
from eval.priors import rival, speed
from eval.priors.speed import measure_speed
from tests.codec.prior.tiny_priors import SIDE, tiny_denoiser, write_tiny_prior


def small_autoencoder() -> nn.Module:
    blocks = 4
    model: nn.Module = AutoencoderKL(
        block_out_channels=(4,) * blocks,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    return model


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small rival, and a small stand-in."""
    monkeypatch.setattr(rival, "sd_autoencoder", small_autoencoder)
    monkeypatch.setattr(rival, "_WIDTHS", (32, 48))
    monkeypatch.setattr(rival, "_HEAD", 16)


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run(cli.app, [str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_rival_runs_the_same_transformer() -> None:
    ours = tiny_denoiser("dit")
    theirs = rival.dit_pipeline(ours, small_autoencoder()).transformer.eval()
    tables = [n for n, _ in ours.named_parameters() if n.endswith("embedding_table.weight")]
    with torch.no_grad():
        for name in tables:  # the classes that both know
            theirs.get_parameter(name)[:3] = ours.get_parameter(name)[:3]
        x, labels = torch.randn(2, 4, SIDE, SIDE), torch.tensor([0, 2])
        times = torch.tensor([10, 900])
        found = [model(x, timestep=times, class_labels=labels).sample for model in (ours, theirs)]
    assert torch.equal(found[0], found[1])
    assert theirs.config.num_embeds_ada_norm == rival.NULL_CLASS


def test_a_transformer_is_timed_on_both_sides(tmp_path: Path, model_dir: Path) -> None:
    prior = open_prior(write_tiny_prior(tmp_path / "prior", model_dir, denoiser="dit"))
    order: list[str] = []
    made = measure_speed(prior, number=2, steps=2, runs=2, report=order.append)
    assert [message.partition(":")[0] for message in order] == ["the prior", "DiTPipeline"] * 3
    assert not made.is_stand_in
    for side in (made.ours, made.theirs):
        assert 0 < side.decoder_s < side.total_s
    assert made.ratio == made.theirs.total_s / made.ours.total_s
    assert made.ours.denoiser.startswith("DiTTransformer2DModel")
    assert json.loads(made.to_json())["ratio"] == made.ratio


def test_a_unet_gets_a_transformer_of_its_arithmetic(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_tiny_prior(tmp_path / "prior", model_dir)
    words = ("prior-speed", directory, "-n", "2", "--steps", "2", "--runs", "1")
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "one transformer of about the prior's arithmetic" in printed
    assert "the prior as it is" in printed
    assert run(*words, "--json", "--guidance", "1") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["is_stand_in"]
    assert content["guidance"] == 1


def test_arithmetic_is_counted_and_met() -> None:
    shape = (4, SIDE, SIDE)
    model = rival.stand_in(20_000_000, shape, 3)
    assert rival.macs(model, shape) == pytest.approx(20_000_000, rel=0.05)
    one = nn.Conv2d(4, 4, 1)
    block = tiny_denoiser("unet")
    assert rival.macs(block, shape) > one.weight.numel() * SIDE * SIDE


def test_priors_of_tokens_are_refused() -> None:
    class Info:
        kind, name = "tokens", "mine"

    class Prior:
        info = Info()

    prior: Any = Prior()
    with pytest.raises(ValueError, match="a prior of tokens, expected a diffusion prior"):
        speed.measure_speed(prior)
