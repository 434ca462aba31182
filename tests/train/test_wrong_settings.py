"""What cannot be trained is refused in one sentence, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codec.errors import LatentCodecError
from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
CASES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "a crop that is no multiple": ({"data": {"crop_size": 36}}, "multiples of 8"),
    "a crop that two levels do not halve": (
        {"data": {"crop_size": 40}, "model": {"bottleneck": "vq2"}},
        "multiples of 16",
    ),
    "an odd number for two levels": (
        {"model": {"bottleneck": "vq2", "latent_channels": 3}},
        "even number of latent_channels",
    ),
    "kernels too narrow for Muon": (
        {"optimizer": {"name": "muon"}},
        "no kernel of at least 32 channels",
    ),
    "levels without blocks": ({"model": {"encoder_layers": [1]}}, "one entry for each"),
    "too few scalar levels": (
        {"model": {"bottleneck": "fsq", "fsq_levels": [8, 8]}},
        "one entry for each of 4 latent_channels",
    ),
    "widths without groups": (
        {"model": {"architecture": "autoencoder_kl"}},
        "multiples of 32",
    ),
    "LPIPS on scaled crops": (
        {
            "loss": {"perceptual_weight": 1.0},
            "regularizer": {"equivariance_probability": 1.0},
        },
        "LPIPS would see images of 8 pixels",
    ),
    "a discriminator that is too deep": (
        {"adversarial": {"disc_weight": 1.0, "disc_layers": 5}},
        "needs 96: lower adversarial.disc_layers",
    ),
    "labels that nobody reads": ({"model": {"num_classes": 3}}, "needs data.labels=true"),
    "too few classes": (
        {"model": {"num_classes": 2}, "data": {"folders": [], "factors": 9, "labels": True}},
        "4 classes in the data .*expected from 1 to 2",
    ),
    "total correlation of a grid": ({"loss": {"tc_weight": 1.0}}, "needs vector latents"),
    "a frozen encoder from nothing": (
        {"model": {"freeze_encoder": True}},
        "freeze_encoder needs model.init_from",
    ),
    "a controller under a schedule": (
        {"loss": {"kl_target": 1.0, "kl_schedule": "linear", "kl_warmup": 9}},
        "kl_schedule constant",
    ),
    "a warm-up of no length": ({"loss": {"kl_schedule": "linear"}}, "needs kl_warmup > 0"),
    "the best LPIPS without LPIPS": ({"run": {"best_metric": "lpips"}}, "best_metric lpips"),
    "codes rounded once more": (
        {"model": {"bottleneck": "vq"}, "regularizer": {"quantize_step": 0.5}},
        "codes are rounded",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case: str, make_config: MakeConfig, tmp_path: Path) -> None:
    sections, message = CASES[case]
    with pytest.raises(LatentCodecError, match=message):
        Trainer(make_config(**sections))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model",
    [
        {"latent_channels": 8},
        {
            "block_out_channels": [8, 8, 16],
            "encoder_layers": [0, 1, 1],
            "decoder_layers": [0, 1, 1],
        },
    ],
    ids=["channels", "downscale"],
)
def test_a_student_has_its_teachers_shape(
    model: dict[str, Any], make_config: MakeConfig, model_dir: Path
) -> None:
    config = make_config(model=model, distillation={"teacher": str(model_dir)})
    with pytest.raises(LatentCodecError, match="give the student the teacher's"):
        Trainer(config)


def test_the_word_no_is_not_false(make_config: MakeConfig) -> None:
    assert make_config(run={"mixed_precision": False}).run.mixed_precision == "no"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": {"name": "muon"}}, "another kind of optimizer"),
        ({"loss": {"learned_logvar": True}}, "has no state of logvar"),
        ({"adversarial": {"disc_weight": 1.0, "disc_layers": 1}}, "has no state of adversary"),
    ],
)
def test_a_resume_under_other_settings(
    changed: dict[str, dict[str, Any]], message: str, make_config: MakeConfig
) -> None:
    model = {"block_out_channels": [32] * 4}
    Trainer(make_config(model=model, run={"max_images": 2})).run()
    with pytest.raises(LatentCodecError, match=message):
        Trainer(make_config(model=model, **changed), resume=True)


def test_the_best_of_another_run_is_not_taken_over(
    make_config: MakeConfig, tmp_path: Path, photos: Path
) -> None:
    run = {"validation_folder": str(photos), "validation_images": 2}
    trainer = Trainer(make_config(run=run))
    trainer.run()
    for checkpoint in trainer.run_dir.glob("checkpoint-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(LatentCodecError, match="the best weights of another run"):
        Trainer(make_config(run=run))
