"""Collapse is real here, is warned of, and the settings that are said to cure it do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
DATA = {"folders": [], "factors": 2000, "crop_size": 32}


def train(config: TrainConfig) -> tuple[dict[str, float], list[str]]:
    """The last held-out figures of a run, and what it warned of."""
    Trainer(config).run()
    log = Path(config.run.output_dir) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    held_out = [line for line in lines if "val/psnr" in line]
    return held_out[-1], [line["warning"] for line in lines if "warning" in line]


def vae(make_config: MakeConfig, **loss: Any) -> TrainConfig:
    """A VAE of 8 latents whose KL is charged far too much for this budget."""
    return make_config(
        model={
            "latent_channels": 8,
            "block_out_channels": [8, 8, 16, 32, 32, 64],
            "encoder_layers": [0, 0, 1, 1, 1, 1],
            "decoder_layers": [0, 0, 1, 1, 1, 1],
            "posterior_std": None,
        },
        data=DATA,
        loss={
            "l1_weight": 0.0,
            "l2_weight": 1.0,
            "kl_weight": 1.0,
            "kl_reduction": "pixel",
            **loss,
        },
        optimizer={"learning_rate": 3e-4, "warmup_images": 200},
        run={
            "batch_size": 16,
            "max_images": 9600,
            "log_every": 100,
            "validation_images": 64,
            "validation_every": 9600,
        },
    )


def test_a_posterior_collapses(make_config: MakeConfig) -> None:
    figures, warnings = train(vae(make_config))
    assert figures["health/kl_bits"] < 0.1
    assert figures["health/active_units"] == 0
    assert any("the posterior collapses" in warning for warning in warnings)


@pytest.mark.parametrize(
    "cure",
    [
        pytest.param({"kl_schedule": "linear", "kl_warmup": 6400}, marks=pytest.mark.slow),
        {"free_bits": 0.5},
    ],
    ids=str,
)
def test_a_posterior_that_does_not(make_config: MakeConfig, cure: dict[str, Any]) -> None:
    figures, warnings = train(vae(make_config, **cure))
    assert figures["health/kl_bits"] > 0.3
    assert figures["health/active_units"] > 0.5
    assert not any("collapses" in warning for warning in warnings)


def codes(make_config: MakeConfig, **codebook: Any) -> TrainConfig:
    """512 codes that start at random places, most of them far from every latent."""
    return make_config(
        model={"bottleneck": "vq", "codebook_size": 512},
        data=DATA,
        loss={"kl_weight": 0.0},
        codebook={"kmeans_init": False, **codebook},
        optimizer={"learning_rate": 5e-4},
        run={
            "batch_size": 16,
            "max_images": 4800,
            "log_every": 100,
            "validation_images": 256,
            "validation_every": 4800,
        },
    )


def test_a_codebook_dies_without_restart_and_lives_with_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    dead, warnings = train(codes(make_config, restart_below=0.0))
    assert dead["health/codebook_usage"] < 0.2
    assert any("codebook dies" in warning for warning in warnings)
    run_dir = Path(make_config().run.output_dir)
    run_dir.rename(tmp_path / "dead")
    alive, warnings = train(codes(make_config, restart_below=0.1))
    assert alive["health/codebook_usage"] > 0.6
    assert alive["health/perplexity"] > 4 * dead["health/perplexity"]
    assert not any("dies" in warning for warning in warnings)
