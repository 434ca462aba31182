"""What cannot be trained is refused in one sentence, before anything is written."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codec.errors import LatentCodecError
from train.config import ConfigError
from train.run_state import OutputDirError, check_output_dir
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


KL_LEVELS = {
    "architecture": "autoencoder_kl",
    "block_out_channels": [32, 32, 64],
    "encoder_layers": [1, 1, 1],
    "decoder_layers": [1, 1, 1],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder_layers", [1, 1, 2]),
        ("decoder_block_out_channels", [32, 32, 32]),
        ("posterior_std", 0.2),
        ("codebook_size", 16),
        ("codebook_cosine", True),
        ("fsq_levels", [5, 5, 5, 5]),
    ],
)
def test_autoencoder_kl_does_not_ignore_a_setting(
    name: str, value: Any, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError, match=rf"autoencoder_kl does not use model\.{name} ") as error:
        make_config(model={**KL_LEVELS, name: value})
    assert str(value) in str(error.value)
    make_config(model={**KL_LEVELS, name: value, "init_from": "somewhere"})  # of another shape


@pytest.mark.parametrize(
    "same",
    [{}, {"posterior_std": None}, {"decoder_block_out_channels": [32, 32, 64]}],
    ids=["defaults", "learned", "widths"],
)
def test_autoencoder_kl_takes_what_it_does_anyway(
    same: dict[str, Any], make_config: MakeConfig
) -> None:
    assert make_config(model={**KL_LEVELS, **same}).model.architecture == "autoencoder_kl"


@pytest.fixture
def without_privileges() -> Iterator[None]:
    """Permissions hold inside, also where the tests run as root."""
    if (user := os.geteuid()) != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("place", ["run", "run/below", "run/far/below"])
def test_a_file_in_the_place_of_the_output_folder(
    place: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputDirError, match=r"run\.output_dir .* Not a directory"):
        Trainer(make_config(run={"output_dir": str(tmp_path / place)}))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("place", ["locked", "locked/run"])
def test_an_output_folder_without_permission(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    request.getfixturevalue("without_privileges")
    with pytest.raises(OutputDirError, match=r"run\.output_dir .* Permission denied"):
        check_output_dir(tmp_path / place)


def test_looking_at_the_output_folder_leaves_nothing(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "some" / "run")
    assert list(tmp_path.iterdir()) == []
    check_output_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
