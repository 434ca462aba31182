"""A run becomes a codec or a plain diffusers directory, and fine-tuning starts from one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from codec import Codec, LatentAutoencoder
from codec.catalog import UnknownModelError
from codec.checkpoint import read_info
from codec.entropy.index_coder import IndexCoder
from codec.packing import read_file
from train.cli import app
from train.release import export
from train.release.export import ExportError, default_step, export_run
from train.sections import TrainConfig
from train.state import Progress, list_checkpoints, load_checkpoint, save_best
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]

CODEC_FILES = {
    "README.md",
    "codec.json",
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "entropy.safetensors",
}
PLAIN_FILES = CODEC_FILES - {"codec.json", "entropy.safetensors"}


@pytest.fixture
def run_dir(make_config: MakeConfig, photos: Path) -> Path:
    config = make_config(
        model={"posterior_std": 0.01},
        run={"validation_folder": str(photos), "validation_images": 2},
    )
    Trainer(config).run()
    return Path(config.run.output_dir)


def command(*words: object) -> Result:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def averaged(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(run_dir)[-1]).tensors["ema"]


def test_a_run_becomes_a_codec(
    run_dir: Path, tmp_path: Path, photos: Path, make_config: MakeConfig
) -> None:
    output = tmp_path / "mine"
    command(run_dir, "-o", output, "--step", 0.02)
    assert names(output) == CODEC_FILES
    info = read_info(output)
    info.verify()
    assert (info.quality_50_step, info.default_quality) == (0.02, 50)
    card = (output / "README.md").read_text()
    assert f"6 images of {photos.name}" in card
    assert "averaged ones that are newest, after 8 crops" in card
    assert "| psnr |" in card
    assert "| active_units |" in card
    assert "latent-codec encode IMAGE" in card
    assert str(photos.parent) not in card  # a card is for others: no paths of this machine

    codec = Codec.from_pretrained(output, dtype="float32")
    image = codec.decompress(codec.compress(photos / "image0.png"))
    assert image.size == (64, 48)
    latents = torch.cat([codec.encode(path).flatten(2) for path in sorted(photos.iterdir())], dim=2)
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    assert latents.mean().item() == pytest.approx(0, abs=0.05)

    config = make_config(
        model={"init_from": str(output)}, run={"output_dir": str(tmp_path / "tuned")}
    )
    tuned = Trainer(config)
    assert default_step(config, tuned.model) == 0.02
    started = tuned.model.state_dict()
    stored = LatentAutoencoder.from_pretrained(output, torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(started[name], stored[name]) for name in stored)


def test_weights_are_the_averaged_ones_whatever_measured_them(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor with bfloat16 units measures in bfloat16, which must not reach the file."""
    monkeypatch.setattr("train.release.latents.choose_dtype", lambda *_, **__: torch.bfloat16)
    export_run(run_dir, tmp_path / "mine", licence="CC0-1.0")
    stored = load_file(tmp_path / "mine" / "diffusion_pytorch_model.safetensors")
    expected = averaged(run_dir)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name].half()) for name in stored)
    trained = load_checkpoint(list_checkpoints(run_dir)[-1]).tensors["model"]
    assert any(not torch.equal(stored[name], trained[name].half()) for name in stored)


def test_the_best_weights_on_request(run_dir: Path, tmp_path: Path) -> None:
    tensors = load_checkpoint(list_checkpoints(run_dir)[-1]).tensors
    tensors["ema"] = {name: tensor + 1 for name, tensor in tensors["ema"].items()}
    figures = {"val/psnr": 31.25, "health/active_units": 0.75}
    save_best(run_dir, tensors, figures, Progress(6, 3, 1.0))
    command(run_dir, "-o", tmp_path / "best", "--best")
    stored = load_file(tmp_path / "best" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], tensors["ema"][name].half()) for name in stored)
    card = (tmp_path / "best" / "README.md").read_text()
    assert "with the best held-out figures, after 6 crops" in card
    assert "| psnr | 31.2500 |" in card
    assert "| active_units | 0.7500 |" in card
    assert "-o DIR --best" in card


def test_a_damaged_checkpoint_is_not_exported(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = list_checkpoints(run_dir)[-1] / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ExportError, match="found no complete run"):
        export_run(run_dir, tmp_path / "mine", licence="CC0-1.0")
    assert "ema.safetensors" in capsys.readouterr().err


def test_nothing_is_overwritten_in_silence(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="already exists"):
        export_run(run_dir, tmp_path / "there", licence="CC0-1.0")
    with pytest.raises(ExportError, match="found no complete run"):
        export_run(tmp_path / "there", tmp_path / "new", licence="CC0-1.0")
    (run_dir / "best" / "manifest.json").unlink()
    with pytest.raises(ExportError, match=r"found no best weights .* without --best"):
        export_run(run_dir, tmp_path / "new", licence="CC0-1.0", best=True)
    export_run(run_dir, tmp_path / "there", licence="CC0-1.0", force=True)
    assert names(tmp_path / "there") == CODEC_FILES
    assert names(tmp_path) == {"run", "there"}  # nothing temporary is left


def test_a_student_reads_the_files_of_its_teacher(
    make_config: MakeConfig, model_dir: Path, photos: Path, tmp_path: Path
) -> None:
    config = make_config(
        model={"decoder_layers": [0, 0, 0, 1]}, distillation={"teacher": str(model_dir)}
    )
    Trainer(config).run()
    student_dir = tmp_path / "student"
    command(config.run.output_dir, "-o", student_dir)
    assert names(student_dir) == CODEC_FILES
    student, teacher = read_info(student_dir), read_info(model_dir)
    student.verify()
    assert student.accepts == (student.latent_id, teacher.latent_id)
    assert student.coder_id == teacher.coder_id
    assert student.quality_50_step == teacher.quality_50_step
    settings = json.loads((student_dir / "config.json").read_text())
    assert (settings["scaling_factor"], settings["shift_factor"]) == (0.5, 0.25)
    assert "latents are those of tiny" in (student_dir / "README.md").read_text()

    path = tmp_path / "image.lc"
    theirs = Codec.from_pretrained(model_dir, dtype="float32")
    path.write_bytes(theirs.compress(photos / "image0.png"))
    from codec.cli import app as codec_app

    words = ["decode", str(path), "-o", str(tmp_path / "image.png"), "--model", str(student_dir)]
    result = CliRunner().invoke(codec_app, words)
    assert result.exit_code == 0, result.output
    ours = Codec.from_pretrained(student_dir, dtype="float32")
    decoded = ours.reconstruct(path).pixels
    assert decoded.shape == (48, 64, 3)
    assert (decoded != theirs.reconstruct(path).pixels).any()  # by the student's own decoder
    with pytest.raises(UnknownModelError):
        theirs.reconstruct(ours.compress(photos / "image0.png"))  # not the other way round


def test_a_decoder_tuned_on_a_frozen_encoder_reads_the_old_files(
    make_config: MakeConfig, model_dir: Path, photos: Path, tmp_path: Path
) -> None:
    config = make_config(model={"init_from": str(model_dir), "freeze_encoder": True})
    Trainer(config).run()
    info = export_run(Path(config.run.output_dir), tmp_path / "tuned", licence="CC0-1.0")
    assert info is not None
    assert read_info(model_dir).latent_id in info.accepts
    before, after = (Codec.from_pretrained(d, dtype="float32") for d in (model_dir, info.directory))
    file = before.compress(photos / "image0.png")
    assert (after.reconstruct(file).pixels != before.reconstruct(file).pixels).any()
    assert torch.equal(after.encode(photos / "image0.png"), before.encode(photos / "image0.png"))


def test_a_student_of_a_plain_autoencoder_has_its_own_tables(
    make_config: MakeConfig, tmp_path: Path, photos: Path
) -> None:
    torch.manual_seed(0)
    teacher = diffusers.AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18,
    )
    teacher.save_pretrained(tmp_path / "teacher")
    config = make_config(distillation={"teacher": str(tmp_path / "teacher")})
    Trainer(config).run()
    info = export_run(Path(config.run.output_dir), tmp_path / "student", licence="CC0-1.0")
    assert info is not None
    assert info.accepts == (info.latent_id,)
    # What a diffusion model of the teacher's latents expects.
    assert json.loads((tmp_path / "student" / "config.json").read_text())["scaling_factor"] == 0.18
    codec = Codec.from_pretrained(info.directory, dtype="float32")
    assert codec.decompress(codec.compress(photos / "image0.png")).size == (64, 48)


KL = {
    "architecture": "autoencoder_kl",
    "block_out_channels": [32, 32],
    "encoder_layers": [1, 1],
    "decoder_layers": [1, 1],
    "posterior_std": None,
}


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ({"bottleneck": "fsq", "fsq_levels": [256, 64, 3, 3]}, {}),  # more than files know
        ({"num_classes": 2}, {"labels": True}),
        ({"block_out_channels": [8] * 6, "encoder_layers": [0] * 6, "decoder_layers": [1] * 6}, {}),
        (KL, {}),
    ],
    ids=["fsq", "conditional", "vector", "autoencoder_kl"],
)
def test_what_has_no_tables_becomes_a_plain_directory(
    make_config: MakeConfig,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    other: dict[str, Any],
) -> None:
    monkeypatch.setattr("train.release.latents.NUM_IMAGES", 16)
    data = dict(other)
    if other:
        for number, path in enumerate(sorted(photos.glob("*.png"))):
            place = tmp_path / "classes" / f"class{number % 2}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
        data["folders"] = [str(tmp_path / "classes")]
    config = make_config(model=model, data=data, run={"max_images": 4})
    Trainer(config).run()
    run_dir, output = Path(config.run.output_dir), tmp_path / "plain"
    result = command(run_dir, "-o", output)
    assert names(output) == PLAIN_FILES
    assert "whose files bring their own tables" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Files, which bring their own tables" in (output / "README.md").read_text()
    codec = Codec.from_pretrained(output)
    if model.get("bottleneck") != "fsq":
        assert codec.decompress(codec.compress(photos / "image0.png")).size == (64, 48)
    assert_stored(output, run_dir, has_codebooks=False)

    kind = diffusers.AutoencoderKL if model is KL else LatentAutoencoder
    loaded = kind.from_pretrained(output)
    settings = json.loads((output / "config.json").read_text())
    assert settings["scaling_factor"] == pytest.approx(1 / measured_std(loaded, config), rel=0.2)
    assert len(settings["latents_std"]) == 4
    assert loaded.decode(torch.zeros(1, 4, 2, 2)).sample.shape[1] == 3


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ({"bottleneck": "vq", "codebook_size": 16}, (16,)),
        ({"bottleneck": "fsq", "fsq_levels": [8, 5, 5, 5]}, (1000,)),
        ({"bottleneck": "vq2", "codebook_size": 16}, (16, 16)),
    ],
    ids=["vq", "fsq", "vq2"],
)
def test_codes_get_a_coder(
    make_config: MakeConfig,
    photos: Path,
    tmp_path: Path,
    model: dict[str, Any],
    sizes: tuple[int, ...],
) -> None:
    config = make_config(model=model, run={"max_images": 4})
    Trainer(config).run()
    run_dir, output = Path(config.run.output_dir), tmp_path / "codec"
    with pytest.raises(ExportError, match="the model has codes"):
        export_run(run_dir, output, default_quality=40)
    result = command(run_dir, "-o", output)
    assert f"configs/entropy/indices-vq-f8.yaml codec={output}" in result.stderr
    info = read_info(output)
    info.verify()
    assert (info.default_quality, info.quality_50_step) == (None, None)
    codec = Codec.from_pretrained(output)
    assert isinstance(codec.coder, IndexCoder)
    assert codec.coder.codebook_sizes == sizes
    data = codec.compress(photos / "image0.png")
    file = read_file(data)
    assert (file.header.coder_id, file.tables) == (info.coder_id, None)
    assert codec.decompress(data).size == (64, 48)
    assert_stored(output, run_dir, has_codebooks="vq" in model["bottleneck"])


def assert_stored(output: Path, run_dir: Path, *, has_codebooks: bool) -> None:
    """Averaged weights in fp16, and codebooks as they are: counts would not fit into fp16."""
    stored = load_file(output / "diffusion_pytorch_model.safetensors")
    for name, tensor in averaged(run_dir).items():
        assert torch.equal(stored[name], tensor.half())
    codebooks = load_checkpoint(list_checkpoints(run_dir)[-1]).tensors["model"]
    for name in stored.keys() - averaged(run_dir).keys():
        assert torch.equal(stored[name], codebooks[name])
    assert (stored.keys() > averaged(run_dir).keys()) == has_codebooks


def measured_std(model: Any, config: TrainConfig) -> float:
    """Deviation of the latents of crops, encoded here in plain float32."""
    from train.data import CropDataset, to_unit
    from train.samples.pool import open_sources

    dataset = CropDataset(open_sources(config.data), config.data, config.run.seed)
    batch = dataset.batch(range(16))
    labels = {"class_labels": batch.labels} if config.model.num_classes else {}
    with torch.no_grad():
        encoded = model.encode(to_unit(batch.pixels, torch.device("cpu")), **labels)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return float(latents.std())


def test_a_learned_deviation_needs_a_step(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model={"posterior_std": None}, run={"max_images": 2})
    Trainer(config).run()
    run_dir = Path(config.run.output_dir)
    with pytest.raises(ExportError, match="give --step"):
        export_run(run_dir, tmp_path / "mine", licence="CC0-1.0")
    assert names(tmp_path) == {"run"}
    assert export.export_run(run_dir, tmp_path / "mine", quality_50_step=0.5, licence="CC0-1.0")
