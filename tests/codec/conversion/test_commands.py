"""The commands convert and fold: outputs, sentences, exit codes, and what is left on the disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from codec import Codec, console
from codec.checkpoint import foreign_info, read_info
from codec.cli import app
from codec.conversion import commands
from codec.conversion.normalization import Formula
from codec.shards.manifest import Manifest, finish_dataset
from tests.codec.conversion.original_checkpoints import SHAPES, original_tensors, write_checkpoint
from tests.codec.shards.datasets import RAW_FORM, job_of, write_raw

Run = Callable[..., int]


@pytest.fixture
def run() -> Run:
    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in words])
        return int(ended.value.code or 0)

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "v.safetensors"
    return write_checkpoint(path, original_tensors(SHAPES["sd"]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_convert_says_what_it_did(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", checkpoint, "-o", tmp_path / "dir", "--json") == 0
    captured = capsys.readouterr()
    done = json.loads(captured.out)
    assert done["shape"]["widths"] == [32, 64]
    assert done["scaling_factor"] == 1.0
    assert captured.err.startswith("warning: found no scaling factor in the checkpoint; took 1,")
    assert names(tmp_path / "dir") == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert run("convert", tmp_path / "dir", "-o", tmp_path / "back.ckpt") == 0
    captured = capsys.readouterr()
    assert done["latent_id"] in captured.out
    assert captured.err == ""


def test_outputs_are_kept(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    for words, message in (([], "give --force"), (["--force"], "is no model directory")):
        assert run("convert", checkpoint, "-o", photos, *words) == 1
        assert message in capsys.readouterr().err
        assert run("fold", "kl-f8d4", "-o", photos, *words) == 1
        assert message in capsys.readouterr().err
    assert (photos / "a.jpg").read_bytes() == b"precious"
    model, factor = tmp_path / "dir", "--scaling-factor=0.5"
    assert run("convert", checkpoint, "-o", model, factor) == 0
    (model / "old").touch()
    assert run("convert", checkpoint, "-o", model, "--scaling-factor=0.25") == 1
    assert AutoencoderKL.load_config(model)["scaling_factor"] == 0.5
    assert run("convert", checkpoint, "-o", model, "--scaling-factor=0.25", "--force") == 0
    assert AutoencoderKL.load_config(model)["scaling_factor"] == 0.25
    assert names(model) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert names(tmp_path) == {"photos", "dir"}
    back = tmp_path / "v.safetensors"
    back.write_bytes(b"precious")
    assert run("convert", model, "-o", back) == 1
    assert back.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "{file}"],
        ["convert", "{file}", "-o", "other.ckpt"],
        ["convert", "{folder}", "-o", "elsewhere"],
        ["convert", "{folder}", "-o", "v.ckpt", "--scaling-factor", "0.2"],
        ["convert", "{file}", "-o", "dir", "--scaling-factor", "0"],
        ["convert", "{file}", "-o", "dir", "--shift-factor", "nan"],
        ["convert", "absent.ckpt", "-o", "dir"],
        ["fold", "kl-f8d4"],
        ["fold", "kl-f8d4", "-o", "dir", "--formula", "other"],
        ["fold", "kl-f8d4", "-o", "dir", "--stats", "absent"],
        ["fold", "kl-f8d4", "-o", "dir", "--stats", "{folder}", "--formula", "xl"],
        ["fold", "kl-f8d4", "-o", "dir", "--dtype", "int8"],
    ],
)
def test_wrong_use_exits_with_2(
    run: Run, checkpoint: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*[word.format(file=checkpoint, folder=tmp_path) for word in words]) == 2
    assert names(tmp_path) == set()


def test_failures_exit_with_1(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    for words in (
        ["convert", tmp_path / "broken.ckpt", "-o", tmp_path / "dir"],
        ["convert", tmp_path, "-o", tmp_path / "v.ckpt"],
        ["fold", tmp_path, "-o", tmp_path / "dir"],
        ["fold", "absent", "-o", tmp_path / "dir"],
        ["fold", "kl-f8d4", "-o", tmp_path / "dir", "--stats", tmp_path],
    ):
        assert run(*words) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert names(tmp_path) == {"broken.ckpt"}


def test_a_codec_is_folded(
    run: Run,
    model_dir: Path,
    tmp_path: Path,
    pixels: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its overall factors: other ids, no coder, fp16 as before, and unscaled latents."""
    assert run("fold", model_dir, "-o", tmp_path / "unit") == 0
    captured = capsys.readouterr()
    assert "shift of config.json, float16" in captured.out
    assert captured.err.startswith("warning: the entropy coder of tiny was left behind")
    assert captured.err.count("\n") == 1
    assert names(tmp_path / "unit") == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    stored = load_file(tmp_path / "unit/diffusion_pytorch_model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.float16}
    assert "CC0-1.0" in (tmp_path / "unit/README.md").read_text()
    old, new = (
        Codec.from_pretrained(path, dtype="float32") for path in (model_dir, tmp_path / "unit")
    )
    assert old.info is not None
    assert new.info is not None
    assert new.info.latent_id != old.info.latent_id
    assert new.info.decoder_id != old.info.decoder_id
    assert old.info.latent_id in captured.out
    image = pixels(40, 48)
    scaled = old.encode(image)
    torch.testing.assert_close(new.encode(image), scaled, rtol=0, atol=5e-3)
    torch.testing.assert_close(new.decode(scaled), old.decode(scaled), rtol=0, atol=5e-3)
    data = new.compress(image)
    found, expected = (np.asarray(one, int) for one in (new.decompress(data), image))
    assert found.shape == expected.shape
    raw = new.autoencoder.encode(torch.zeros(1, 3, 8, 8)).latent_dist.mode()
    assert torch.equal(raw, new.encode(torch.zeros(1, 3, 8, 8)))  # scaling is neutral


@pytest.fixture
def dataset(model_dir: Path, tmp_path: Path) -> Path:
    """Latents of the tiny model, by its ids; the numbers are made up."""
    folder = tmp_path / "latents"
    write_raw(folder, [6])
    finish_dataset(folder, job_of(RAW_FORM, read_info(model_dir)))
    return folder


@pytest.mark.parametrize("formula", ["channels", "shift", "factor"])
def test_statistics_of_a_dataset(
    run: Run, model_dir: Path, dataset: Path, tmp_path: Path, formula: str
) -> None:
    """After folding, the dataset's own latents would have mean 0 and deviation 1."""
    words = ["--stats", dataset, "--formula", formula, "--dtype", "fp32"]
    assert run("fold", model_dir, "-o", tmp_path / "unit", *words) == 0
    old, new = (
        Codec.from_pretrained(path, dtype="float32").autoencoder
        for path in (model_dir, tmp_path / "unit")
    )
    found = Manifest.read(dataset).statistics
    shift, factor = found.shift_factor, found.scaling_factor
    mean, std = {
        "channels": (found.mean, found.std),
        "shift": (np.full(4, shift), np.full(4, 1 / factor)),
        "factor": (np.zeros(4), np.full(4, 1 / factor)),
    }[formula]
    x = torch.rand(1, 3, 24, 32)
    raw_latents = old.encode(x).latent_dist.mode().movedim(1, -1).double().numpy()
    normalised = new.encode(x).latent_dist.mode().movedim(1, -1).numpy()
    np.testing.assert_allclose(normalised, (raw_latents - mean) / std, rtol=1e-4, atol=1e-5)


def test_statistics_of_another_model_are_refused(
    run: Run,
    other_model_dir: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fold", other_model_dir, "-o", tmp_path / "unit", "--stats", dataset) == 1
    assert "found latents of tiny" in capsys.readouterr().err
    assert not (tmp_path / "unit").exists()


def test_an_autoencoder_of_diffusers_is_folded(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without a coder has nothing to lose: no warning."""
    assert run("convert", checkpoint, "-o", tmp_path / "sd", "--scaling-factor", 0.25) == 0
    assert run("fold", tmp_path / "sd", "-o", tmp_path / "unit", "--json") == 0
    captured = capsys.readouterr()
    done = json.loads(captured.out.splitlines()[-1])
    assert done["formula"] == "shift"
    assert done["normalization"] == {"mean": [0.0] * 4, "std": [4.0] * 4}
    assert done["latent_id"] == foreign_info(tmp_path / "unit").latent_id
    assert done["note"] is None
    assert captured.err == ""
    # a folded model is in original files too, with what is left of its statistics
    assert run("convert", tmp_path / "unit", "-o", tmp_path / "unit.ckpt") == 0
    assert run("convert", tmp_path / "unit.ckpt", "-o", tmp_path / "again") == 0
    assert json.loads((tmp_path / "again/config.json").read_text())["shift_factor"] == 0.0


def test_weights_out_of_range_are_refused(
    run: Run, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tight = shutil.copytree(model_dir, tmp_path / "tight")
    config = json.loads((tight / "config.json").read_text())
    config |= {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 1.0, 1e-7]}
    (tight / "config.json").write_text(json.dumps(config))
    assert run("fold", tight, "-o", tmp_path / "unit") == 1
    assert "use --dtype fp32" in capsys.readouterr().err
    assert names(tmp_path) == {"tight"}


def test_the_commands_formulas_are_the_modules() -> None:
    """Stated twice, for help must not wait for what the module imports."""
    assert [one.value for one in commands.FormulaName] == [one.value for one in Formula]


def test_the_licence_goes_along_with_folded_weights(run: Run, tmp_path: Path) -> None:
    assert run("fold", "kl-f8d4", "-o", tmp_path / "folded") == 0
    text = (tmp_path / "folded" / "LICENSE-WEIGHTS.md").read_text(encoding="utf-8")
    assert "non-commercial" in text
