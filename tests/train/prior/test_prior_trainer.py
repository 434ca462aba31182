"""A run of a diffusion prior: its data, its steps, its figures, what an export makes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from codec import Codec
from codec.dataset import running
from codec.dataset.preprocess import Preprocessing
from codec.prior import open_prior
from codec.prior.directory import read_prior
from codec.prior.opening import DiffusionPrior
from codec.shards.forms import Content, ShardForm
from tests.codec.dataset.jobs import make_dataset, run_serial, settings_of
from tests.train.prior.prior_runs import prior_config, write_images
from train.config import ConfigError, load_config
from train.entropy.frozen import open_codec
from train.prior.latents import ImageLatents, PriorBatch
from train.prior.shard_latents import ShardLatents
from train.prior.step import draw
from train.prior_trainer import PriorTrainer, describe
from train.release.export import export_run
from train.samples.sources import DataError
from train.state import list_checkpoints, load_checkpoint

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "prior"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos") / "train")


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    tensors = load_checkpoint(list_checkpoints(run_dir)[-1]).tensors
    return {f"{part}.{name}": t for part in tensors for name, t in tensors[part].items()}


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_from_images_to_samples(photos: Path, model_dir: Path, tmp_path: Path) -> None:
    held_out = write_images(tmp_path / "held-out", 2)
    config = prior_config(
        tmp_path / "run", photos, model_dir,
        run={"validation_folder": str(held_out), "validation_every": 8},
    )  # fmt: skip
    assert "8 images, 2 classes" in describe(config)
    progress = PriorTrainer(config).run()
    assert progress.images_seen == 16
    lines = log(tmp_path / "run")
    measured = [line for line in lines if "val/loss" in line]
    assert [line["images"] for line in measured] == [8, 16]
    bins = [measured[-1][f"val/loss_time_{place:02d}"] for place in range(3)]
    assert measured[-1]["val/loss"] == pytest.approx(np.mean(bins), rel=1e-5)
    with PIL.Image.open(tmp_path / "run" / "pictures" / "samples-000000016.png") as grid:
        assert grid.size == (4 * 64 + 3 * 4, 2 * 64 + 4)
    info = export_run(tmp_path / "run", tmp_path / "prior", licence="CC0-1.0")
    assert info == read_prior(tmp_path / "prior")
    assert (info.kind, info.class_names, info.size) == ("diffusion", ("hat", "shoe"), (64, 64))
    assert "CC0-1.0" in (tmp_path / "prior" / "README.md").read_text()
    prior = open_prior(tmp_path / "prior", device="cpu", dtype="float32")
    assert isinstance(prior, DiffusionPrior)
    (found,) = prior.sample([1], [0], steps=2)
    assert found.shape == (64, 64, 3)
    averaged = {
        name.removeprefix("ema."): tensor
        for name, tensor in weights(tmp_path / "run").items()
        if name.startswith("ema.")
    }
    for name, parameter in prior.pipeline.denoiser.named_parameters():
        torch.testing.assert_close(parameter, averaged[name].half().float())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, photos: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = {"architecture": name, "dropout": 0.2}
    if name == "dit":
        model |= {"widths": [32], "patch_size": 2, "layers": 2}
    settings = {"prior": model, "objective": {"objective": "v_prediction"}}
    whole = prior_config(tmp_path / "whole", photos, model_dir, **settings)
    PriorTrainer(whole).run()
    parts = prior_config(tmp_path / "parts", photos, model_dir, **settings)
    first = PriorTrainer(parts)
    stepper = first.stepper
    run, calls = stepper.run, []

    def stop_after_two(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            first.stop.received = True
        return run(*arguments)

    stepper.run = stop_after_two  # type: ignore[method-assign]
    assert first.run().images_seen == 8
    PriorTrainer(parts, resume=True).run()
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("objective", ["flow", "epsilon", "v_prediction"])
def test_the_loss_reaches_every_parameter(
    objective: str, photos: Path, model_dir: Path, tmp_path: Path
) -> None:
    weighting = "logit_normal" if objective == "flow" else "min_snr"
    config = prior_config(
        tmp_path, photos, model_dir,
        objective={"objective": objective, "time_weighting": weighting},
        run={"batch_size": 16},
    )  # fmt: skip
    trainer = PriorTrainer(config)
    with torch.no_grad():  # a new network ends in zeros, which no gradient passes
        for parameter in trainer.model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    batch = next(trainer.dataset.batches(0, 0, 1))
    trainer.stepper.loss(batch).backward()
    untouched = [
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert untouched == []


def test_it_learns_one_batch_by_heart(photos: Path, model_dir: Path, tmp_path: Path) -> None:
    config = prior_config(
        tmp_path, photos, model_dir,
        prior={"widths": [32, 64], "dropout": 0.0, "condition_dropout": 0.0},
        data={"flip": False},
        optimizer={"learning_rate": 3e-3, "ema_decay": 0.9},
        run={"batch_size": 8, "max_images": 960, "log_every": 20},
    )  # fmt: skip
    PriorTrainer(config).run()
    losses = [line["loss/denoising"] for line in log(tmp_path) if "loss/denoising" in line]
    assert losses[-1] < 0.45 * losses[0]


def test_conditions_are_dropped_as_often_as_asked(
    photos: Path, model_dir: Path, tmp_path: Path
) -> None:
    config = prior_config(tmp_path, photos, model_dir)
    trainer = PriorTrainer(config)
    count = 400
    batch = PriorBatch(
        torch.zeros(count, 4, 2, 2), torch.zeros(count, dtype=torch.int64),
        torch.empty(count, 0, 0), torch.arange(count),
    )  # fmt: skip
    process = trainer.stepper.process
    draws = draw(batch, process, config.objective, seed=1, dropout=0.25)
    assert 0.17 < draws.dropped.float().mean() < 0.33
    assert not draw(batch, process, config.objective, seed=1, dropout=0.0).dropped.any()
    # Numbers follow from the sample, not from the batch.
    few = PriorBatch(*(part[100:110] for part in batch))
    again = draw(few, process, config.objective, seed=1, dropout=0.25)
    assert torch.equal(again.noise, draws.noise[100:110])
    assert torch.equal(again.times, draws.times[100:110])


def test_latents_of_images_are_the_codecs(photos: Path, model_dir: Path, tmp_path: Path) -> None:
    config = prior_config(tmp_path, photos, model_dir)
    frozen = open_codec(str(model_dir), torch.device("cpu"))
    data = ImageLatents(config, frozen, Accelerator(cpu=True))
    assert data.latents.shape == (16, 4, 8, 8)  # mirrored copies too
    assert data.labels.tolist() == [0] * 8 + [1] * 8
    with PIL.Image.open(photos / "hat" / "0.png") as image:
        square = np.asarray(image.resize((64, 64), 1))
    codec = Codec.from_pretrained(model_dir, device="cpu")
    wanted = codec.encode(np.ascontiguousarray(square))[0]
    torch.testing.assert_close(data.latents[0], wanted, rtol=0, atol=0.05)
    indices = [
        i
        for batch in (next(data.batches(s, 0, 1)) for s in range(0, 16, 4))
        for i in batch.indices.tolist()
    ]
    assert indices == list(range(16))


def test_an_image_that_cannot_be_read_is_told(model_dir: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 2)
    (folder / "hat" / "broken.png").write_bytes(b"no image")
    trainer = PriorTrainer(prior_config(tmp_path / "run", folder, model_dir))
    trainer.run()
    assert any("broken.png" in line.get("warning", "") for line in log(tmp_path / "run"))


@pytest.fixture(scope="module")
def shards(photos: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards") / "d"
    settings = settings_of(
        model_dir,
        form=ShardForm(content=Content.FLOAT32, posterior=True),
        preprocessing=Preprocessing(size=64),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_local", run_serial)
        make_dataset(photos, directory, settings)
    return directory


def test_shards_in_place_of_images(shards: Path, model_dir: Path, tmp_path: Path) -> None:
    data = {"folders": [], "shards": str(shards), "sample_posterior": True}
    settings = {"data": data, "run": {"max_images": 24, "validation_shards": str(shards)}}
    whole = prior_config(tmp_path / "whole", None, model_dir, **settings)
    PriorTrainer(whole).run()
    # Resumed in the middle of the second epoch of eight records.
    settings["run"] |= {"max_images": 12}
    PriorTrainer(prior_config(tmp_path / "parts", None, model_dir, **settings)).run()
    settings["run"] |= {"max_images": 24}
    trainer = PriorTrainer(
        prior_config(tmp_path / "parts", None, model_dir, **settings), resume=True
    )
    assert isinstance(trainer.dataset, ShardLatents)
    first = next(trainer.dataset.batches(12, 0, 1))
    uninterrupted = trainer.dataset.batches(0, 0, 1)
    fourth = [next(uninterrupted) for _ in range(4)][3]
    assert torch.equal(first.latents, fourth.latents)
    assert torch.equal(first.indices, fourth.indices)
    assert log(tmp_path / "whole")[-1]["val/loss"] > 0
    info = export_run(tmp_path / "whole", tmp_path / "prior")
    assert info is not None
    assert info.name == "prior"


def test_texts_are_embeddings_by_the_names_of_images(
    photos: Path, model_dir: Path, tmp_path: Path
) -> None:
    names = [path.relative_to(photos).with_suffix("").as_posix() for path in photos.rglob("*.png")]
    texts = {name: torch.randn(3, 6) for name in names}
    save_file(texts, tmp_path / "texts.safetensors")
    settings = {
        "prior": {"condition": "embeddings"},
        "data": {"embeddings": str(tmp_path / "texts.safetensors")},
        "run": {"validation_folder": str(photos)},
    }
    config = prior_config(tmp_path / "run", photos, model_dir, **settings)
    trainer = PriorTrainer(config)
    batch = next(trainer.dataset.batches(0, 0, 1))
    assert batch.embeddings.shape == (4, 3, 6)
    trainer.run()
    assert log(tmp_path / "run")[-1]["val/loss"] > 0
    export_run(tmp_path / "run", tmp_path / "prior")
    prior = open_prior(tmp_path / "prior", device="cpu", dtype="float32")
    assert isinstance(prior, DiffusionPrior)
    found = prior.pipeline(
        prompt_embeds=torch.stack(list(texts.values())[:2]), num_inference_steps=2
    ).images
    assert len(found) == 2
    del texts[names[0]]
    save_file(texts, tmp_path / "texts.safetensors")
    with pytest.raises(DataError, match=f"found no tensor '{names[0]}'"):
        PriorTrainer(prior_config(tmp_path / "other", photos, model_dir, **settings))


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"objective": {"time_weighting": "min_snr"}}, "min_snr goes with objective epsilon"),
        ({"objective": {"zero_terminal_snr": True}}, "goes with objective v_prediction"),
        ({"data": {"shards": "x"}}, "data.folders and data.shards both given"),
        ({"data": {"sample_posterior": True}}, "goes with data.shards alone"),
        ({"prior": {"condition": "embeddings"}}, "give both or neither"),
        ({"prior": {"hight": 3}}, "unknown key prior.hight"),
        (
            {"run": {"validation_folder": "a", "validation_shards": "b"}},
            "give one of run.validation_folder",
        ),
    ],
)
def test_settings_that_do_not_go_together(
    sections: dict[str, Any], sentence: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prior_config(tmp_path, photos, tmp_path, **sections)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("clothing*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", "/shared")
    text = path.read_text(encoding="utf-8")
    config = load_config(path)
    for section, field in type(config).model_fields.items():
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            assert f"  {key}:" in text.partition(f"{section}:")[2], f"{section}.{key}"
