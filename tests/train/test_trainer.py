"""A run from start to end: its records, its budget, and a resume that equals no interruption."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from train.losses import LossTerms
from train.meter import Meter
from train.sections import TrainConfig
from train.state import ResumeError, list_checkpoints
from train.step import StepResult
from train.trainer import Trainer, TrainingError

MakeConfig = Callable[..., TrainConfig]
States = Callable[[Path], dict[str, torch.Tensor]]


def hook(trainer: Trainer, before_each_step: Callable[[], None]) -> None:
    """Call something in front of every optimizer step."""
    step = trainer.stepper.run

    def run(*arguments: Any) -> StepResult:
        before_each_step()
        return step(*arguments)

    trainer.stepper.run = run  # type: ignore[method-assign]


ADVERSARIAL = {
    "disc_weight": 0.5,
    "disc_start": 4,
    "disc_warmup": 2,
    "disc_adaptive": True,
    "disc_layers": 1,
    "disc_channels": 8,
    "r1_weight": 1.0,
    "r1_every": 3,
    "feature_matching_weight": 1.0,
}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "adamw": {"optimizer": {"name": "adamw"}, "model": {"block_out_channels": [32] * 4}},
    "muon": {"optimizer": {"name": "muon"}, "model": {"block_out_channels": [32] * 4}},
    "adversarial": {
        "adversarial": ADVERSARIAL,
        "loss": {
            "learned_logvar": True,
            "kl_weight": 1e-3,
            "kl_target": 2.0,
            "free_bits": 0.1,
        },
        "model": {"posterior_std": None},
        "regularizer": {"equivariance_probability": 0.5, "latent_noise": 0.1},
    },
    "bf16": {
        "run": {"mixed_precision": "bf16"},
        "loss": {"kl_schedule": "cyclical", "kl_cycle": 6, "kl_warmup": 3},
    },
    "codebooks": {
        "model": {"bottleneck": "vq2", "codebook_size": 16},
        "loss": {"kl_weight": 0.0},
        "data": {"crop_size": 48},
    },
    "total correlation": {
        "model": {
            "block_out_channels": [8, 8, 8, 8, 8, 16],
            "encoder_layers": [0, 0, 1, 0, 0, 1],
            "decoder_layers": [0, 0, 1, 0, 0, 1],
        },
        "loss": {"tc_weight": 1.0},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_config: MakeConfig,
    tmp_path: Path,
    kind: str,
    states: States,
    assert_same: Callable[..., None],
) -> None:
    shared = KINDS[kind]
    sections = {name: part for name, part in shared.items() if name != "run"}
    run = {**shared.get("run", {}), "max_images": 20}
    whole = make_config(**sections, run={**run, "output_dir": str(tmp_path / "whole")})
    Trainer(whole).run()

    run |= {"output_dir": str(tmp_path / "parts")}
    interrupted = Trainer(make_config(**sections, run=run))
    hook(
        interrupted, lambda: setattr(interrupted.stop, "received", interrupted.progress.steps == 2)
    )
    assert interrupted.run().images_seen == 6  # in the middle of an epoch of six images
    assert Trainer(make_config(**sections, run=run), resume=True).run().images_seen == 20
    assert_same(states(tmp_path / "whole"), states(tmp_path / "parts"))


def test_records(make_config: MakeConfig, tmp_path: Path, photos: Path) -> None:
    config = make_config(
        run={"validation_folder": str(photos), "validation_every": 4, "validation_images": 2}
    )
    Trainer(config).run()
    run_dir = tmp_path / "run"
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss/total" in line]
    validations = [line for line in lines if "val/psnr" in line]
    assert [line["images"] for line in steps] == [2, 4, 6, 8]
    assert [line["images"] for line in validations] == [4, 8]
    assert 0 < validations[0]["val/psnr"] < 40
    assert {"time/data_share", "time/step_seconds", "optim/gradient_norm"} <= steps[0].keys()
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["run"]["max_images"] == 8
    assert (
        json.loads((run_dir / "versions.json").read_text())["torch"]
        == torch.__version__.split("+")[0]
    )


@pytest.mark.parametrize("kind", ["adamw", "muon", "adversarial", "codebooks"])
def test_accumulation_equals_the_large_batch(
    make_config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    """Gradients, the adaptive weight and the codebooks of the third step, to rounding."""
    results = []
    for name, batch, accumulate in (("large", 4, 1), ("small", 2, 2)):
        run = {"batch_size": batch, "gradient_accumulation_steps": accumulate}
        sections = {**KINDS[kind], "run": {**run, "output_dir": str(tmp_path / name)}}
        sections["optimizer"] = {**sections.get("optimizer", {}), "learning_rate": 1e-5}
        trainer = Trainer(make_config(**sections))
        with closing(trainer._batches()) as first:
            trainer.stepper.initialise_codebooks(first)
        with closing(trainer._batches()) as batches:
            for step in range(3):
                trainer.stepper.run(batches, 4 * step, Meter())
        found = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        found |= {n: b for n, b in trainer.model.named_buffers() if b.is_floating_point()}
        if (adversary := trainer.objective.adversary) is not None:
            assert adversary.weight > 0
            found["weight"] = torch.tensor(adversary.weight)
            found |= {n: p.grad for n, p in adversary.network.named_parameters()}
        results.append(found)
    assert results[0].keys() == results[1].keys()
    for name, first_value in results[0].items():
        difference = float((first_value - results[1][name]).abs().max())
        assert difference < 1e-3 * float(first_value.abs().max()) + 3e-8, name


def test_the_rate_follows_images_seen(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        optimizer={"warmup_images": 4, "learning_rate": 0.01, "final_learning_rate": 0.5}
    )
    Trainer(config).run()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    rates = [json.loads(line)["optim/learning_rate"] for line in lines]
    assert rates == pytest.approx([0.002, 0.006, 0.01, 0.0075])


def test_a_time_budget_stops_and_saves(make_config: MakeConfig) -> None:
    config = make_config(run={"max_images": 10**6, "max_minutes": 1e-6})
    trainer = Trainer(config)
    assert trainer.run().steps == 1
    assert len(list_checkpoints(trainer.run_dir)) == 1


def test_old_checkpoints_go(make_config: MakeConfig) -> None:
    config = make_config(run={"checkpoint_minutes": 1e-9, "checkpoints_total_limit": 2})
    trainer = Trainer(config)
    trainer.run()
    assert [p.name for p in list_checkpoints(trainer.run_dir)] == [
        "checkpoint-000000006",
        "checkpoint-000000008",
    ]


def test_a_partial_checkpoint_is_never_picked(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config())
    trainer.run()
    (trainer.run_dir / "checkpoint-000000999.partial").mkdir()
    assert [p.name for p in list_checkpoints(trainer.run_dir)] == ["checkpoint-000000008"]


def test_starting_over_and_resuming_nothing_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ResumeError, match="found no complete checkpoint"):
        Trainer(make_config(), resume=True)
    Trainer(make_config()).run()
    with pytest.raises(ResumeError, match="add --resume"):
        Trainer(make_config())
    with pytest.raises(ResumeError, match="another shape"):
        Trainer(make_config(model={"latent_channels": 8}), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(make_config: MakeConfig, states: States) -> None:
    trainer = Trainer(make_config(run={"checkpoint_minutes": 1e-9}))

    def poison() -> None:
        if trainer.progress.steps == 2:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))

    hook(trainer, poison)
    with pytest.raises(
        TrainingError, match=r"not finite .* last good state is .*checkpoint-000000004"
    ):
        trainer.run()
    good = states(trainer.run_dir)
    assert all(tensor.isfinite().all() for tensor in good.values())


@pytest.mark.parametrize("where", ["data", "discriminator"])
def test_the_state_before_a_bad_step_is_saved(
    make_config: MakeConfig, where: str, states: States
) -> None:
    """No checkpoint is due yet, but what was learned is good."""
    disc = {"disc_weight": 1.0, "disc_start": 10**6, "disc_warmup": 10**6, "disc_layers": 1}
    trainer = Trainer(make_config(adversarial=disc))
    adversary = trainer.objective.adversary
    assert adversary is not None
    backward, terms = adversary.discriminator_backward, trainer.objective.terms

    def bad_verdict(*arguments: Any) -> dict[str, torch.Tensor]:
        found = backward(*arguments)
        late = where == "discriminator" and trainer.progress.steps == 3
        return {**found, "adv/discriminator": torch.tensor(torch.nan if late else 0.0)}

    def bad_loss(*arguments: Any) -> LossTerms:
        found = terms(*arguments)
        late = where == "data" and trainer.progress.steps == 3
        return LossTerms(found.total * (torch.nan if late else 1.0), found.terms)

    adversary.discriminator_backward = bad_verdict  # type: ignore[method-assign]
    trainer.objective.terms = bad_loss  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"last good state is .*checkpoint-000000006"):
        trainer.run()
    assert all(tensor.isfinite().all() for tensor in states(trainer.run_dir).values())


def test_sigterm_saves_and_ends(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config(run={"max_images": 10**6}))

    def terminate() -> None:
        if trainer.progress.steps == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    hook(trainer, terminate)
    assert trainer.run().steps == 2
    assert list_checkpoints(trainer.run_dir)
