"""Tables for somebody else's autoencoder: the same model, smaller files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from codec import Codec, bitstream, catalog, images
from codec.bitstream import FILE_TABLES_ID, ChannelSteps
from codec.catalog import UnknownModelError
from codec.cli import app as codec_app
from codec.entropy.channel_coder import ChannelCoder
from codec.outputs import atomic_folder
from tests.codec.foreign_models import save_model
from train.cli import app
from train.release.folders import ExportError
from train.release.foreign import export_tables
from train.samples.sources import DataError

MakePixels = Callable[..., images.Pixels]
CODEC_FILES = {
    "README.md",
    "codec.json",
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "entropy.safetensors",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("kl", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def fitted(plain: Path, pixels: MakePixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` with tables, fitted by the command on two folders and a file."""
    places = tmp_path_factory.mktemp("images")
    for number in range(6):
        images.save(pixels(60, 80, number), places / f"{number % 2}" / f"{number}.png")
    images.save(pixels(100, 100, 9), places / "single.png")
    output = tmp_path_factory.mktemp("fitted") / "theirs"
    result = command(
        "--tables-for", plain, places / "0", places / "1", places / "single.png", "-o", output
    )
    assert f"--model {output}" in result.stderr
    return output


def command(*words: object) -> Result:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result


def test_the_model_is_copied_and_described(plain: Path, fitted: Path) -> None:
    assert {path.name for path in fitted.iterdir()} == CODEC_FILES
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (fitted / name).read_bytes() == (plain / name).read_bytes()
    codec, before = Codec.from_pretrained(fitted), Codec.from_pretrained(plain)
    assert codec.info is not None
    assert before.info is not None
    codec.info.verify()
    assert (codec.name, codec.info.default_quality, codec.info.quality_50_step) == (
        "theirs",
        50,
        0.243,
    )
    assert codec.info.latent_id == before.info.latent_id
    assert codec.info.coder_id != FILE_TABLES_ID
    assert codec.info.summary == "AutoencoderKL, f2, 4 channels, tables fitted on 7 images"
    card = (fitted / "README.md").read_text()
    assert "unchanged (latents " + before.info.latent_id in card
    assert "tables fitted on" not in card or str(fitted) not in card


def test_files_are_smaller_and_hold_steps_of_the_given_images(
    plain: Path, fitted: Path, pixels: MakePixels
) -> None:
    own, codec = (Codec.from_pretrained(d, device="cpu", dtype="fp32") for d in (plain, fitted))
    source = pixels(70, 90, 7)
    data = codec.compress(source)
    file = bitstream.loads(data)
    assert file.tables is None
    assert isinstance(file.header.quantizer, ChannelSteps)
    assert isinstance(codec._coder, ChannelCoder)
    steps, deviations = np.array(file.header.quantizer.steps), np.array(codec._coder.deviations)
    assert np.abs(steps - 0.243 * deviations).max() <= 1
    latents = codec._raw(codec.encode(source))[0]
    errors = (codec._raw(codec.unpack(data))[0] - latents).abs().flatten(1).amax(dim=1).numpy()
    assert (errors <= steps / 2**16 * 0.5001 + 1e-5).all()
    assert np.asarray(codec.decompress(data)).shape == (70, 90, 3)
    repacked = own.pack(codec.unpack(data), step=0.243)
    assert own._packer.coder is None
    with_tables = bitstream.loads(repacked)
    assert len(file.payload) < len(with_tables.payload) + len(with_tables.tables or b"")
    sizes = [len(codec.compress(source, quality)) for quality in (10, 50, 90)]
    assert sizes == sorted(set(sizes))


def test_who_reads_whose_files(
    plain: Path, fitted: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, codec = (Codec.from_pretrained(d, device="cpu", dtype="fp32") for d in (plain, fitted))
    source = pixels(40, 40)
    theirs = own.compress(source)
    np.testing.assert_array_equal(codec.decompress(theirs), own.decompress(theirs))
    ours = codec.compress(source)
    with pytest.raises(UnknownModelError, match=f"AutoencoderKL reads .*coder {FILE_TABLES_ID}"):
        own.decompress(ours)
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(fitted))
    np.testing.assert_array_equal(own.decompress(ours), codec.decompress(ours))
    assert catalog.model_directory("theirs") == fitted
    half = Codec.from_pretrained(fitted, device="cpu", dtype="bf16")
    assert torch.equal(half.unpack(ours), codec.unpack(ours))


def test_damaged_payloads_are_typed_errors(fitted: Path, pixels: MakePixels) -> None:
    data = Codec.from_pretrained(fitted).compress(pixels(40, 40))
    codec = Codec.from_pretrained(fitted)
    for place in range(0, len(data), 9):
        damaged = bytearray(data)
        damaged[place] ^= 32
        with pytest.raises(bitstream.BitstreamError):
            codec.decompress(bytes(damaged))


def test_the_codec_works_on_the_command_line(
    fitted: Path, pixels: MakePixels, tmp_path: Path
) -> None:
    images.save(pixels(33, 44), tmp_path / "a.png")
    for words in (
        ["encode", "a.png", "-o", "a.lc", "--quality", "40"],
        ["decode", "a.lc", "-o", "b.png"],
    ):
        places = [str(tmp_path / word) if "." in word else word for word in words]
        result = CliRunner().invoke(codec_app, [*places, "--model", str(fitted)])
        assert result.exit_code == 0, result.output
    assert images.load(tmp_path / "b.png").pixels.shape == (33, 44, 3)


def test_settings_reach_codec_json(plain: Path, pixels: MakePixels, tmp_path: Path) -> None:
    images.save(pixels(64, 64), tmp_path / "a.png")
    output = tmp_path / "out"
    words = ["--step", 0.5, "--default-quality", 70, "--name", "mine", "--licence", "MIT"]
    command("--tables-for", plain, tmp_path / "a.png", "-o", output, *words)
    content = json.loads((output / "codec.json").read_text())
    assert (content["name"], content["license"]) == ("mine", "MIT")
    assert (content["default_quality"], content["quality_50_step"]) == (70, 0.5)
    result = CliRunner().invoke(
        app, ["export", "--tables-for", str(plain), str(tmp_path / "a.png"), "-o", str(output)]
    )
    assert isinstance(result.exception, ExportError)
    assert "already exists" in str(result.exception)
    command("--tables-for", plain, tmp_path / "a.png", "-o", output, "--force")
    assert json.loads((output / "codec.json").read_text())["name"] == "out"


def test_what_cannot_be_fitted_is_named(
    plain: Path, pixels: MakePixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images can be read: check the given images"):
        export_tables(str(plain), [str(tmp_path / "broken.png")], tmp_path / "out", licence="MIT")
    with pytest.raises(images.ImageError):
        export_tables(str(plain), [str(tmp_path / "none")], tmp_path / "out", licence="MIT")
    with pytest.raises(UnknownModelError):
        export_tables("nothing-here", [str(tmp_path)], tmp_path / "out", licence="MIT")
    monkeypatch.setattr("train.release.coders.MAX_CHANNELS", 3)
    with pytest.raises(ExportError, match="4 latent channels, expected at most 3"):
        export_tables(str(plain), [str(tmp_path)], tmp_path / "out", licence="MIT")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/a", "runs/b", "-o", "x"], "give one run"),
        (["--tables-for", "m", "a.png", "-o", "x", "--best"], "goes with a run only"),
        (["--tables-for", "m", "-o", "x"], "Missing argument"),
    ],
)
def test_wrong_use_is_named(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["export", *words])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "out") as partial:
            (partial / "half").touch()
            raise RuntimeError("half")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError, match="half"):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
