"""A run of an entropy model: its data, its steps, its records, and real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from codec import Codec, LatentAutoencoder, quantizer
from codec.errors import LatentCodecError
from tests.conftest import TINY
from tests.train.entropy_runs import entropy_config
from train import cli
from train.config import known_keys, load_config
from train.entropy.frozen import open_codec
from train.entropy.latents import LatentDataset
from train.entropy.sections import EntropyConfig, IndexConfig
from train.entropy_trainer import EntropyTrainer
from train.loop import TrainingError
from train.report import render_table, report_run
from train.state import list_checkpoints, load_checkpoint, read_best

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "entropy"
MakeConfig = Callable[..., EntropyConfig]
State = dict[str, torch.Tensor]
IMAGES = 60
INTERRUPTED = {"max_images": IMAGES, "checkpoint_minutes": 0.05 / 60, "trackers": []}
# Imports once for all runs; those of a line are forked together, then their exit codes printed.
NURSERY = """
import json, os, sys
import train.entropy_trainer
from train import cli
for line in sys.stdin:
    children = []
    for words, environment, output in json.loads(line):
        child = os.fork()
        if child == 0:
            os.environ.update(environment)
            stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.argv = ["latent-codec-train", *words]
            cli.main()
        children.append(child)
    print(json.dumps(children), flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@pytest.fixture
def make(photos: Path, model_dir: Path, tmp_path: Path) -> MakeConfig:
    """Makes a tiny configuration; `make(run={"max_images": 4})` replaces settings."""
    return partial(entropy_config, tmp_path / "run", photos, model_dir)


def write(config: EntropyConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def dataset(config: EntropyConfig) -> LatentDataset:
    return LatentDataset(config, open_codec(config.entropy.codec), Accelerator(cpu=True))


def test_a_run_leaves_its_records(make: MakeConfig, photos: Path) -> None:
    held_out = {"validation_folder": str(photos), "validation_images": 3, "validation_every": 4}
    config = make(run=held_out)
    run_dir = Path(config.run.output_dir)
    assert EntropyTrainer(config).run().steps == 4
    steps = [line for line in lines(run_dir) if "loss/bits_per_symbol" in line]
    assert [line["images"] for line in steps] == [2, 4, 6, 8]
    measured = [line for line in lines(run_dir) if "val/bits_per_symbol" in line]
    assert [line["images"] for line in measured] == [4, 8]
    assert measured[1]["val/bits_per_symbol"] < measured[0]["val/bits_per_symbol"]
    for name in ("", "linear_", "order0_"):
        coarse, fine = (measured[1][f"val/{name}bits_per_symbol_q{q}"] for q in (30, 50))
        assert coarse < fine
        assert measured[1][f"val/{name}bits_per_symbol"] == pytest.approx((coarse + fine) / 2)
    best = read_best(run_dir)
    assert best is not None
    assert best["val/bits_per_symbol"] == pytest.approx(measured[1]["val/bits_per_symbol"])
    assert load_config(run_dir / "config.yaml") == config
    data = json.loads((run_dir / "data.json").read_text())
    assert (data["num_images"], data["num_listed"]) == (4, 6)
    assert list((run_dir / "latent-codec").glob("events*"))
    assert "| bits a symbol | linear coder | order 0 |" in render_table([report_run(run_dir)])


def test_held_out_figures_are_those_of_the_symbols(make: MakeConfig, photos: Path) -> None:
    trainer = EntropyTrainer(make(run={"validation_folder": str(photos), "validation_images": 2}))
    assert trainer.validation is not None
    figures = trainer.validate()
    units = quantizer.step_from_quality(50, trainer.dataset.quality_50_step)
    linear = trainer.validation.coders["linear"]
    symbols = [quantizer.quantize(image, units) for image in trainer.validation.latents]
    bits = sum(linear.estimate_bits(image, units) for image in symbols)
    count = sum(image.size for image in symbols)
    assert figures["val/linear_bits_per_symbol_q50"] == pytest.approx(bits / count)
    step = torch.tensor([units / 2**16])
    with torch.no_grad(), trainer.averaged():
        twin = sum(
            float(trainer.model(torch.from_numpy(quantizer.dequantize(image, units))[None], step))
            for image in symbols
        )
    assert figures["val/bits_per_symbol_q50"] == pytest.approx(twin / count)


def test_latents_are_those_of_files(make: MakeConfig, model_dir: Path, photos: Path) -> None:
    found = dataset(make(data={"flip": False})).latents
    assert len(found) == 4  # as large as a crop
    codec = Codec.from_pretrained(model_dir)
    settings = codec.autoencoder.config
    for number in range(2, 6):
        scaled = codec.encode(photos / f"image{number}.png")[0].numpy()
        raw = scaled / settings.scaling_factor + settings.shift_factor
        assert (
            sum(raw.shape == one.shape and np.allclose(raw, one, atol=1e-6) for one in found) == 1
        )
    file = codec.unpack(codec.compress(photos / "image5.png", step=1e-3))[0].numpy()
    raw = file / settings.scaling_factor + settings.shift_factor
    assert any(raw.shape == one.shape and np.allclose(raw, one, atol=2e-3) for one in found)


def test_a_sample_follows_from_seed_and_number_alone(make: MakeConfig) -> None:
    config = make()
    found = dataset(config)
    one = next(found.batches(4, 0, 1))
    first, second = (next(found.batches(4, rank, 2)) for rank in range(2))
    again = dataset(config).batch([4, 5, 6, 7])
    assert torch.equal(torch.cat([first.latents, second.latents]), again.latents)
    assert torch.equal(one.latents, again.latents[:2])
    assert torch.equal(one.steps, again.steps[:2])
    other = dataset(make(run={"seed": 1})).batch([4, 5, 6, 7])
    assert not torch.equal(other.latents, again.latents)
    many = found.batch(range(200))
    coarsest, finest = (
        quantizer.step_from_quality(q, found.quality_50_step) / 2**16 for q in (10, 85)
    )
    assert finest <= many.steps.min() < 2 * finest
    assert coarsest / 2 < many.steps.max() <= coarsest
    symbols = many.latents / many.steps[:, None, None, None]
    assert torch.allclose(symbols, symbols.round(), atol=1e-4)
    epoch = [found.image_number(index) for index in range(len(found.latents))]
    assert sorted(epoch) == list(range(len(found.latents)))
    plain = dataset(make(data={"transpose": False})).batch(range(200)).latents
    turned = [not torch.equal(a, b) for a, b in zip(plain, many.latents, strict=True)]
    assert 0.3 < np.mean(turned) < 0.7


def test_what_is_left_out_is_counted(make: MakeConfig, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in photos.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    run = EntropyTrainer(make(data={"folders": [str(folder)]}, run={"max_images": 2}))
    run.run()
    assert len(run.dataset.latents) == 2 * 4  # mirrored copies too
    said = [line["warning"] for line in lines(run.run_dir) if "warning" in line]
    assert any("left out 2 images" in text and "data.latent_crop=8" in text for text in said)
    assert any("skipped" in text and "broken.png" in text for text in said)
    assert lines(run.run_dir)[0]["data/unreadable"] == 1

    one = dataset(make()).latents[0].nbytes
    bounded = dataset(make(data={"cache_gib": 5 * one / 2**30}))
    assert 2 <= len(bounded.latents) <= 4
    assert "chosen at random" in bounded.notes[-1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"latent_crop": 64}}, "none of the training images has 64 rows"),
        ({"data": {"cache_gib": 1e-9}}, "raise it"),
        ({"data": {"folders": []}}, "found no training images"),
        ({"entropy": {"codec": "kl-f8d5"}}, "found no model 'kl-f8d5'"),
        ({"entropy": {"min_quality": 60, "max_quality": 50}}, "min_quality 60 is above"),
        ({"run": {"validation_qualities": [50, 120]}}, "found 120; qualities go from 1 to 100"),
        ({"run": {"validation_folder": "nowhere"}}, "nowhere"),
        ({"entropy": {"unit": 8}}, r"unknown key entropy\.unit; did you mean entropy\.units"),
        ({"run": {"mixed_precision": "bf16"}}, r"unknown key run\.mixed_precision"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    sections: dict[str, dict[str, Any]], message: str, make: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(LatentCodecError, match=message):
        EntropyTrainer(make(**sections))
    assert not (tmp_path / "run").exists()


def test_codes_have_no_context_model(make: MakeConfig, tmp_path: Path) -> None:
    LatentAutoencoder(**TINY, bottleneck="fsq").save_pretrained(tmp_path / "fsq")
    with pytest.raises(LatentCodecError, match="expected an autoencoder with continuous latents"):
        EntropyTrainer(make(entropy={"codec": str(tmp_path / "fsq")}))


def test_a_signal_saves_and_a_loss_that_is_not_finite_stops(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = EntropyTrainer(make(run=INTERRUPTED))
    step = trainer.stepper.run

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(trainer.stepper, "run", interrupted)
    assert trainer.run().images_seen == 2
    assert load_checkpoint(list_checkpoints(trainer.run_dir)[-1]).progress.steps == 1

    trainer = EntropyTrainer(make(run=INTERRUPTED), resume=True)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    monkeypatch.setattr(
        trainer.stepper, "wrapped", lambda latents, steps: latents.sum((1, 2, 3)) * torch.nan
    )
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: None)
    with pytest.raises(TrainingError, match=r"after 2 images .* lower optimizer\.learning_rate"):
        trainer.run()
    assert all(
        torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items()
    )


def test_accumulated_batches_equal_a_large_one(make: MakeConfig, tmp_path: Path) -> None:
    weights = []
    for number, (size, count) in enumerate(((4, 1), (2, 2))):
        run = {"batch_size": size, "gradient_accumulation_steps": count, "max_images": 12}
        run["output_dir"] = str(tmp_path / f"run{number}")
        trainer = EntropyTrainer(make(run=run, optimizer={"learning_rate": 1e-4}))
        assert trainer.run().steps == 3
        weights.append(trainer.model.state_dict())
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-6), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", "somewhere")
    config = load_config(path, ["units=8"])
    assert isinstance(config, IndexConfig if path.stem.startswith("indices") else EntropyConfig)
    values = yaml.safe_load(path.read_text())
    stated = {f"{section}.{key}" for section, part in values.items() for key in part}
    assert stated == set(known_keys(type(config)))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_train(
    path: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", "somewhere")
    changes = ["max_images=8", "validation_images=2", "latent_crop=8", f"output_dir={tmp_path}"]
    if path.stem == "debug":
        changes.append("factors=3")
    else:
        changes += [f"folders=[{photos}]", f"validation_folder={photos}"]
        changes += ["exclude=[]", "validation_names=null"]
    simpler = "linear"
    if path.stem.startswith("indices"):
        LatentAutoencoder(**TINY, bottleneck="fsq").save_pretrained(tmp_path / "fsq")
        changes.append(f"codec={tmp_path / 'fsq'}")
        simpler = "tables"
    config = load_config(path, changes)
    assert EntropyTrainer(config).run().images_seen == 8
    assert f"val/{simpler}_bits_per_symbol" in lines(tmp_path)[-1]


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latent-codec-train", *map(str, words)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_the_command_tells_the_kinds_apart(
    make: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(make(), tmp_path / "config.yaml")
    assert command(monkeypatch, path, "units=7", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 6 images; ")
    assert "crops of 8x8x4 latents of tiny, 64 pixels a side" in printed
    assert yaml.safe_load(printed) == make(entropy={"units": 7}).model_dump(mode="json")
    assert {entry.name for entry in tmp_path.iterdir()} == {"config.yaml"}
    assert command(monkeypatch, path, "max_images=4") == 0
    assert "4 images in" in capsys.readouterr().err
    assert command(monkeypatch, path) == 1
    assert "add --resume" in capsys.readouterr().err
    assert command(monkeypatch, path, "latent_crops=3") == 1
    assert "did you mean data.latent_crop" in capsys.readouterr().err


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield process
        process.kill()


def start(nursery: subprocess.Popen[str], *runs: tuple[Path, dict[str, str], Path]) -> list[int]:
    """Fork runs of configurations; returns their process ids."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    entries = [[[str(path)], environment, str(output)] for path, environment, output in runs]
    print(json.dumps(entries), file=nursery.stdin, flush=True)
    found: list[int] = json.loads(nursery.stdout.readline())
    return found


def exit_codes(nursery: subprocess.Popen[str]) -> list[int]:
    assert nursery.stdout is not None
    codes: list[int] = json.loads(nursery.stdout.readline())
    return codes


def test_killed_and_resumed_equals_uninterrupted(
    nursery: subprocess.Popen[str],
    make: MakeConfig,
    tmp_path: Path,
    states: Callable[[Path], State],
    assert_same: Callable[[State, State], None],
) -> None:
    run_dir = tmp_path / "run"
    config = make(run=INTERRUPTED)
    (child,) = start(nursery, (write(config, tmp_path / "config.yaml"), {}, tmp_path / "said"))
    deadline = time.monotonic() + 120
    while not any(path.name > "checkpoint-000000000" for path in list_checkpoints(run_dir)):
        assert time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert exit_codes(nursery) == [-signal.SIGKILL]
    saved = load_checkpoint(list_checkpoints(run_dir)[-1]).progress.images_seen
    assert 0 < saved < IMAGES
    assert EntropyTrainer(config, resume=True).run().images_seen == IMAGES
    whole = make(run={**INTERRUPTED, "output_dir": str(tmp_path / "whole")})
    EntropyTrainer(whole).run()
    assert_same(states(run_dir), states(tmp_path / "whole"))


def test_two_processes_equal_the_doubled_batch(
    nursery: subprocess.Popen[str],
    make: MakeConfig,
    photos: Path,
    tmp_path: Path,
    states: Callable[[Path], State],
) -> None:
    run = {"validation_folder": str(photos), "validation_images": 3, "max_images": 40}
    optimizer = {"learning_rate": 1e-4}
    two = make(run={**run, "output_dir": str(tmp_path / "two")}, optimizer=optimizer)
    path = write(two, tmp_path / "two.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [
        (path, {**shared, "RANK": rank, "LOCAL_RANK": rank}, tmp_path / f"said{rank}")
        for rank in ("0", "1")
    ]
    start(nursery, *runs)
    assert exit_codes(nursery) == [0, 0], [output.read_text() for *_, output in runs]
    versions = json.loads((tmp_path / "two" / "versions.json").read_text())
    assert versions["processes"] == 2

    one = make(
        run={**run, "batch_size": 4, "output_dir": str(tmp_path / "one")}, optimizer=optimizer
    )
    trainer = EntropyTrainer(one)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.run().steps == 10
    moved = [
        float((value - before[name]).abs().max())
        for name, value in trainer.model.state_dict().items()
    ]
    assert max(moved) > 5e-4
    first, second = (states(tmp_path / name) for name in ("one", "two"))
    for name in first:
        if name.startswith("/0/"):  # model and average
            assert torch.allclose(first[name], second[name], atol=1e-5, rtol=0), name
    figures, same = (lines(tmp_path / name)[-1] for name in ("one", "two"))
    for name, value in figures.items():
        if name.startswith("val/"):
            assert same[name] == pytest.approx(value, rel=1e-3)
