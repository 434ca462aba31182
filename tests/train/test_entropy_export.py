"""A run of an entropy model becomes a codec whose files are read back, and old files still are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from codec import Codec
from codec.catalog import UnknownModelError
from codec.checkpoint import RELATIVE_50_STEP, read_info
from codec.entropy import load_coder
from codec.entropy.context_coder import ContextCoder
from codec.header import OneStep
from codec.packing import read_file
from tests.codec.foreign_models import CONTINUOUS
from tests.train.entropy_runs import entropy_config
from train.cli import app
from train.config import load_config
from train.entropy_trainer import EntropyTrainer
from train.records import config_text
from train.release.entropy import averaged_twin
from train.release.export import ExportError, export_run
from train.sections import TrainConfig
from train.state import list_checkpoints, load_checkpoint
from train.trainer import Trainer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run_dir(photos: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not change it: copy it first."""
    folder = tmp_path_factory.mktemp("entropy") / "run"
    run = {"validation_folder": str(photos), "validation_images": 2}
    EntropyTrainer(entropy_config(folder, photos, model_dir, run=run)).run()
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "smaller"
    result = command(run_dir, "-o", output)
    assert result.stderr.count("\n") == 1  # no advice to train what it has
    return output


def command(*words: object) -> Result:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result


def test_all_of_the_autoencoder_stays(exported: Path, model_dir: Path) -> None:
    before, after = read_info(model_dir), read_info(exported)
    after.verify()
    assert (exported / WEIGHTS).read_bytes() == (model_dir / WEIGHTS).read_bytes()
    assert (exported / "config.json").read_bytes() == (model_dir / "config.json").read_bytes()
    for name in ("latent_id", "decoder_id", "accepts", "default_quality", "quality_50_step"):
        assert getattr(after, name) == getattr(before, name)
    assert after.coder_id != before.coder_id
    assert after.license_name == "CC0-1.0"
    assert after.name == "smaller"
    assert after.summary == "Random weights for tests., context model"


def test_files_come_back(exported: Path, photos: Path) -> None:
    codec = Codec.from_pretrained(exported)
    coder = load_coder(exported / "entropy.safetensors")
    assert isinstance(coder, ContextCoder)
    for quality in (1, 50, 100):
        data = codec.compress(photos / "image5.png", quality=quality)
        header = read_file(data).header
        assert header.coder_id == read_info(exported).coder_id
        assert codec.decompress(data).size == (64, 88)
    again = Codec.from_pretrained(exported)
    assert np.array_equal(again.reconstruct(data).pixels, codec.reconstruct(data).pixels)


def test_files_made_before_are_still_read(exported: Path, model_dir: Path, photos: Path) -> None:
    assert read_info(exported).earlier_coders == (read_info(model_dir).coder_id,)
    before, after = Codec.from_pretrained(model_dir), Codec.from_pretrained(exported)
    file = before.compress(photos / "image5.png")
    assert np.array_equal(after.reconstruct(file).pixels, before.reconstruct(file).pixels)
    with pytest.raises(UnknownModelError):  # not the other way round
        before.reconstruct(after.compress(photos / "image5.png"))


@torch.no_grad()
def test_the_coder_is_that_of_the_averaged_weights(run_dir: Path, exported: Path) -> None:
    config = load_config(run_dir / "config.yaml")
    checkpoint = list_checkpoints(run_dir)[-1]
    model = averaged_twin(config, checkpoint)
    averaged = load_checkpoint(checkpoint).tensors["ema"]
    assert all(torch.equal(value, averaged[name]) for name, value in model.named_parameters())
    coder = load_coder(exported / "entropy.safetensors")
    assert isinstance(coder, ContextCoder)
    first = model.networks["edge"].first.weight
    stored = coder.network.weights[2].first
    assert torch.equal(stored, torch.round(first.double() * 2**10).int())


def test_the_card_says_what_was_measured(run_dir: Path, exported: Path, photos: Path) -> None:
    card = (exported / "README.md").read_text()
    assert card.startswith("# smaller\n")
    assert card.count("## Entropy model") == 1
    assert f"latents of 4 images of {photos.name}" in card
    assert "8 crops of 8x8 cells were seen" in card
    last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
    row = [f"{last[f'val/{name}bits_per_symbol_q50']:.4f}" for name in ("", "linear_", "order0_")]
    assert f"| 50 | {' | '.join(row)} |" in card
    assert str(run_dir.parent) not in card  # a card is for others: no paths of this machine


def test_training_on_from_an_export_keeps_every_coder(
    run_dir: Path, exported: Path, model_dir: Path, tmp_path: Path
) -> None:
    config = load_config(run_dir / "config.yaml", [f"codec={exported}", "validation_folder=null"])
    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    (again / "config.yaml").write_text(config_text(config))
    card = exported / "README.md"
    first = export_run(again, tmp_path / "same")
    assert first is not None
    old = read_info(model_dir).coder_id
    present = read_info(exported).coder_id
    assert first.coder_id == present  # the same weights: no coder stands beside itself
    assert first.earlier_coders == (old,)
    assert (tmp_path / "same" / "README.md").read_text().count("## Entropy model") == 1
    assert card.read_text().count("## Entropy model") == 1

    trained = EntropyTrainer(
        entropy_config(
            tmp_path / "other", Path(config.data.folders[0]), exported, run={"max_images": 4}
        )
    )
    trained.run()
    second = export_run(tmp_path / "other", tmp_path / "second", name="third", licence="MIT")
    assert second is not None
    assert second.coder_id not in (old, present)
    assert set(second.earlier_coders) == {old, present}
    assert (second.name, second.license_name) == ("third", "MIT")
    assert second.summary.count("context model") == 1


def test_another_autoencoder_than_that_of_the_run_is_refused(
    run_dir: Path, other_model_dir: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(run_dir, changed)
    config = load_config(run_dir / "config.yaml", [f"codec={other_model_dir}"])
    (changed / "config.yaml").write_text(config_text(config))
    with pytest.raises(ExportError, match="expected those that the run was on"):
        export_run(changed, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_foreign_autoencoder_gets_one_step_for_all_channels(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    CONTINUOUS["tiny-f8c16"]().save_pretrained(tmp_path / "foreign")
    foreign = Codec.from_pretrained(tmp_path / "foreign")
    before = foreign.compress(photos / "image5.png")
    config = entropy_config(tmp_path / "run", photos, tmp_path / "foreign", run={"max_images": 4})
    trainer = EntropyTrainer(config)
    trainer.run()
    info = export_run(tmp_path / "run", tmp_path / "codec")
    assert info is not None
    deviations = np.array(trainer.dataset.deviations)
    expected = RELATIVE_50_STEP * np.sqrt(np.mean(deviations**2))
    assert info.quality_50_step == pytest.approx(expected)
    assert info.summary == "AutoencoderTiny, f8, 16 channels, context model"
    codec = Codec.from_pretrained(tmp_path / "codec")
    data = codec.compress(photos / "image5.png")
    assert codec.decompress(data).size == (64, 88)
    assert isinstance(read_file(data).header.quantizer, OneStep)
    # Files with their own tables are still read.
    assert np.array_equal(codec.reconstruct(before).pixels, foreign.reconstruct(before).pixels)
    assert "No held-out images were measured" in (tmp_path / "codec" / "README.md").read_text()


def test_an_autoencoders_export_says_how_to_get_smaller_files(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    Trainer(make_config(model={"posterior_std": 0.01}, run={"max_images": 2})).run()
    result = command(tmp_path / "run", "-o", tmp_path / "codec")
    advice = f"latent-codec-train configs/entropy/context-f8d4.yaml codec={tmp_path / 'codec'}"
    assert advice in result.stderr
