"""Runs that charge for bits: it works, and repeats exactly however it is split."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from eval.latents.entropy import order0_bits
from train.data import to_unit
from train.meter import Meter
from train.sections import TrainConfig
from train.trainer import Trainer, TrainingError

MakeConfig = Callable[..., TrainConfig]
States = Callable[[Path], dict[str, Tensor]]
CHARGED: dict[str, Any] = {"rate_weight": 1.0, "rate_units": 8, "rate_head_units": 4}
FINE_STEP = 0.02
"""Below the deviations of an untrained encoder's latents, which are not clamped to it then."""


def charged_trainer(make_config: MakeConfig, **sections: dict[str, Any]) -> Trainer:
    sections["rate"] = {**CHARGED, **sections.get("rate", {})}
    return Trainer(make_config(**sections))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of codec and twin, by name."""
    assert trainer.objective.rate is not None
    networks = {"codec": trainer.model, "twin": trainer.objective.rate.network}
    return {
        f"{which}.{name}": parameter.grad.clone()
        for which, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def test_records(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"rate_weight": 0.5, "rate_start": 4, "rate_ramp": 6, "rate_warmup": 2}
    charged_trainer(make_config, rate=settings, run={"max_images": 12}).run()
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert "rate/weight" not in lines[0]
    weights = [line["rate/weight"] for line in lines[1:]]
    assert weights == pytest.approx([0.0, 0.5 / 6, 1.5 / 6, 2.5 / 6, 0.5])
    for line in lines[1:]:
        # 4 x 4 x 4 symbols for 32 x 32 pixels
        assert line["loss/rate_bpp"] == pytest.approx(line["rate/bits_per_symbol"] / 16)
        assert 0 < line["rate/bits_per_symbol"] < 16
        assert line["rate/gradient_norm"] > 0


def test_validation_is_at_the_charged_step(
    make_config: MakeConfig, tmp_path: Path, photos: Path
) -> None:
    settings = {"rate_start": 4, "rate_warmup": 4, "rate_step": 0.3}
    run = {"validation_folder": str(photos), "validation_every": 4, "validation_images": 3}
    trainer = charged_trainer(make_config, rate=settings, run={**run, "max_images": 8})
    assert trainer.validation is not None
    assert trainer.validation.step == 0.3
    assert "val/context_bpp" not in trainer.validate()
    trainer.run()
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    found = [line["val/context_bpp"] for line in lines if "val/psnr" in line]
    assert len(found) == 2
    assert all(0 < rate < 1 for rate in found)


def order0_bpp(trainer: Trainer) -> float:
    """Entropy of the rounded latents of the training images, in bits a pixel."""
    x = to_unit(trainer.dataset.batch(range(24)).pixels, torch.device("cpu"))
    with torch.no_grad():
        latents = trainer.model.encode(x).latent_dist.mean
    step = trainer.model.config.posterior_std * math.sqrt(12)
    symbols = torch.round(latents / step).numpy()
    return sum(map(order0_bits, symbols)) / len(symbols) / x[0, 0].numel()


def test_a_charge_lowers_the_entropy(make_config: MakeConfig, tmp_path: Path) -> None:
    """By a fifth at least, with noise and with rounding; and the codec still learns."""
    rates, errors = {}, {}
    for kind, settings in {
        "free": {"rate_weight": 0.0},
        "noise": {"rate_weight": 0.3},
        "round": {"rate_weight": 0.3, "rate_quantization": "round"},
    }.items():
        folder = tmp_path / kind
        trainer = charged_trainer(
            make_config,
            rate={"rate_learning_rate": 0.01, "rate_step_range": 1.0, **settings},
            optimizer={"learning_rate": 8e-3},
            run={"max_images": 160, "batch_size": 4, "output_dir": str(folder), "trackers": []},
        )
        trainer.run()
        rates[kind] = order0_bpp(trainer)
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        errors[kind] = lines[-1]["loss/l1"] / lines[0]["loss/l1"]
    assert rates["noise"] < 0.8 * rates["free"]
    assert rates["round"] < 0.8 * rates["free"]
    assert max(errors.values()) < 0.7


RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "noise": {"rate": {"rate_start": 4, "rate_warmup": 2, "rate_ramp": 9, "rate_step": FINE_STEP}},
    "round, before it starts": {
        "rate": {"rate_quantization": "round", "rate_start": 12, "rate_warmup": 4},
        "run": {"mixed_precision": "bf16"},
    },
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str,
    make_config: MakeConfig,
    tmp_path: Path,
    states: States,
    assert_same: Callable[..., None],
) -> None:
    settings = {**CHARGED, **RUNS[kind]["rate"]}
    run = {**RUNS[kind].get("run", {}), "max_images": 20}
    folders = {name: {**run, "output_dir": str(tmp_path / name)} for name in ("whole", "parts")}
    Trainer(make_config(rate=settings, run=folders["whole"])).run()
    first = Trainer(make_config(rate=settings, run=folders["parts"]))
    step = first.stepper.run

    def stop_after_three(*arguments: Any) -> Any:
        first.stop.received = first.progress.steps == 2
        return step(*arguments)

    first.stepper.run = stop_after_three  # type: ignore[method-assign]
    assert first.run().images_seen == 6
    Trainer(make_config(rate=settings, run=folders["parts"]), resume=True).run()
    found = states(tmp_path / "whole")
    assert "/1/rate/network/twin.deviations" in found
    assert_same(found, states(tmp_path / "parts"))


def test_accumulation_equals_the_large_batch(make_config: MakeConfig, tmp_path: Path) -> None:
    """Gradients of codec and twin in the third step, to rounding."""
    results = []
    for name, batch, accumulate in (("large", 4, 1), ("small", 2, 2)):
        trainer = charged_trainer(
            make_config,
            rate={"rate_learning_rate": 1e-4},
            optimizer={"learning_rate": 1e-5},
            run={
                "batch_size": batch,
                "gradient_accumulation_steps": accumulate,
                "output_dir": str(tmp_path / name),
            },
        )
        with closing(trainer._batches()) as batches:
            for step in range(3):
                trainer.stepper.run(batches, 4 * step, Meter())
        results.append(gradients(trainer))
    assert results[0].keys() == results[1].keys()
    for name, first in results[0].items():
        difference = float((first - results[1][name]).abs().max())
        assert difference < 1e-3 * float(first.abs().max()) + 3e-8, name


def test_two_processes_equal_the_doubled_batch(
    make_config: MakeConfig, tmp_path: Path, states: States
) -> None:
    """Codec, twin and its optimizer after ten steps, to 1e-5; twin and codec went somewhere."""
    sections: dict[str, Any] = {
        "rate": {**CHARGED, "rate_start": 4, "rate_warmup": 4, "rate_learning_rate": 1e-3},
        "optimizer": {"learning_rate": 1e-4, "warmup_images": 0},
    }
    run = {"max_images": 40, "trackers": []}
    folders = {processes: str(tmp_path / f"of{processes}") for processes in (1, 2)}
    two = make_config(**sections, run={**run, "batch_size": 2, "output_dir": folders[2]})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "train.cli", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((Path(folders[2]) / "versions.json").read_text())["processes"] == 2
    one = Trainer(make_config(**sections, run={**run, "batch_size": 4, "output_dir": folders[1]}))
    assert one.objective.rate is not None
    start = [p.detach().clone() for p in one.objective.rate.network.parameters()]
    one.run()
    moved = zip(start, one.objective.rate.network.parameters(), strict=True)
    assert max(float((before - after).detach().abs().max()) for before, after in moved) > 3e-3
    first, second = (states(Path(folders[processes])) for processes in (1, 2))
    assert first.keys() == second.keys()
    twin = [name for name in first if name.startswith("/1/rate/")]
    assert len(twin) > 50
    for name in [name for name in first if "/model/" in name] + twin:
        assert float((first[name].float() - second[name].float()).abs().max()) < 1e-5, name


def test_a_twin_that_is_not_finite_stops_the_run(make_config: MakeConfig, states: States) -> None:
    trainer = charged_trainer(make_config, rate={"rate_start": 10**6, "rate_warmup": 10**6})
    rate = trainer.objective.rate
    assert rate is not None
    learn = rate.learn

    def poisoned(*arguments: Any) -> dict[str, Tensor]:
        figures = learn(*arguments)
        if trainer.progress.steps == 3:
            next(rate.network.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return figures

    rate.learn = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"last good state is .*checkpoint-000000006"):
        trainer.run()
    assert all(tensor.isfinite().all() for tensor in states(trainer.run_dir).values())
