"""Autoencoders without tables: any of diffusers' and our own, through files that bring theirs."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import Codec, bitstream, catalog, checkpoint, console, identity, images
from codec.bitstream import (
    FILE_TABLES_ID,
    ChannelSteps,
    CodeIndices,
    CorruptFileError,
    InvalidHeaderError,
    LatentFile,
    OneStep,
)
from codec.catalog import UnknownModelError
from codec.cli import app
from codec.identity import ModelError
from codec.latents import LatentsError
from codec.packing import SymbolMismatchError
from codec.quantizer import QuantizerError, measure_deviations
from codec.wire import InvalidTablesError
from eval.demo import packaged_samples
from eval.latents.entropy import order0_bits
from eval.metrics import psnr
from tests.codec.foreign_models import CONTINUOUS, DISCRETE, FACTORS, save_model

MakePixels = Callable[..., images.Pixels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models; `directory_of` makes them when they are first asked for."""
    return tmp_path_factory.mktemp("foreign")


def directory_of(name: str, folder: Path) -> Path:
    directory = folder / name
    return directory if directory.is_dir() else save_model(name, folder)


def load(name: str, folder: Path, dtype: str = "fp32") -> Codec:
    return Codec.from_pretrained(directory_of(name, folder), device="cpu", dtype=dtype)


# ---- continuous latents


@pytest.mark.parametrize("name", CONTINUOUS)
def test_files_hold_the_quantised_latents_and_their_decoding(
    name: str, folder: Path, pixels: MakePixels
) -> None:
    codec, source = load(name, folder), pixels(70, 91)
    assert codec.factor == FACTORS.get(name, 2)
    data = codec.compress(source)
    file = bitstream.loads(data)
    header = file.header
    assert header.coder_id == FILE_TABLES_ID
    assert header.name == type(codec.autoencoder).__name__
    assert isinstance(header.quantizer, ChannelSteps)
    raw_latents = codec._raw(codec.encode(source))
    steps = np.array(header.quantizer.steps)[:, None, None] / 2**16
    errors = (codec._raw(codec.unpack(data)) - raw_latents)[0].abs().numpy()
    assert (errors <= steps * 0.5001 + 1e-5).all()
    deviations = raw_latents[0].flatten(1).std(dim=1, correction=0).numpy()
    assert steps.ravel() == pytest.approx(0.243 * deviations, rel=0.02, abs=2**-15)
    decoded = np.asarray(codec.decompress(data)).astype(int)
    expected = images.from_unit(codec.decode(codec.unpack(data))[0].numpy())[:70, :91]
    assert decoded.shape == (70, 91, 3)
    # scaling latents for a diffusion model and back rounds them
    assert np.abs(decoded - expected).max() <= 1
    assert (decoded != expected).mean() < 0.01


@pytest.mark.parametrize("name", ["kl", "kl-f8c16", "tiny", "dc-f32", "vqmodel", "vq2"])
def test_symbols_do_not_depend_on_the_reader(name: str, folder: Path, pixels: MakePixels) -> None:
    single, half = load(name, folder), load(name, folder, "bf16")
    for writer in (single, half):
        data = writer.compress(pixels(40, 60))
        assert torch.equal(single.unpack(data), half.unpack(data))


def test_quality_has_one_scale(folder: Path, pixels: MakePixels) -> None:
    codec, source = load("kl-f8c16", folder), pixels(96, 96)
    assert (
        codec.compress(source) == codec.compress(source, 50) == codec.compress(source, step=0.243)
    )
    files = [codec.compress(source, quality) for quality in (1, 25, 50, 75, 100)]
    assert [len(data) for data in files] == sorted({len(data) for data in files})
    latents = codec.encode(source)
    errors = [float((codec.unpack(data) - latents).square().mean()) for data in files]
    assert errors == sorted(errors, reverse=True)


def test_flat_images_and_dead_channels_are_taken(folder: Path) -> None:
    for name in ("kl", "tiny", "dc-f64"):
        codec = load(name, folder)
        for value in (0, 128):
            data = codec.compress(np.full((40, 40, 3), value, np.uint8), 100)
            assert codec.decompress(data).size == (40, 40)
    latents = torch.zeros(4, 5, 5)
    latents[1] = 7
    latents[2, 0, 0] = 1e-9
    codec = load("kl", folder)
    assert (codec.unpack(codec.pack(latents))[0] - latents).abs().max() < 0.05


def test_deviations_are_bounded_integers() -> None:
    flat = np.stack([np.zeros((2, 2)), np.full((2, 2), 64.0), np.array([[3, 3], [5, 5]])])
    assert measure_deviations([flat.astype(np.float32)]) == (1, 65536, 65536)
    assert measure_deviations([flat[2:].astype(np.float32)] * 3) == (65536,)
    for value in (np.nan, np.inf, 1e9):
        with pytest.raises(QuantizerError, match="expected finite ones below 65536"):
            measure_deviations([np.full((1, 2, 2), value, np.float32)])


def test_embedded_weights_as_somebody_elses(tmp_path: Path) -> None:
    """A trained network on real photographs: near the unquantised latents, near its own coder."""
    embedded = Codec.from_pretrained(device="cpu", dtype="fp32")
    assert embedded.info is not None
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(embedded.info.directory / name, tmp_path / name)
    codec = Codec.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    for sample in packaged_samples()[:1]:
        source = images.load(sample.path).pixels[:512, :512]
        data = codec.compress(source)
        file = bitstream.loads(data)
        assert isinstance(file.header.quantizer, ChannelSteps)
        raw_latents = codec._raw(codec.unpack(data))[0].numpy()
        steps = np.array(file.header.quantizer.steps)[:, None, None] / 2**16
        symbols = np.rint(raw_latents / steps).astype(np.int32)
        assert 8 * (len(file.payload) + len(file.tables or b"")) < 0.95 * order0_bits(symbols)
        own = embedded._coder.estimate_bits(symbols, int(steps.mean() * 2**16)) / 8  # type: ignore[union-attr]
        assert len(file.payload) < 1.15 * own
        unquantised = images.from_unit(codec.decode(codec.encode(source))[0].numpy())
        before = psnr(source, unquantised[: len(source), : source.shape[1]])
        assert psnr(source, codec.reconstruct(data).pixels) > before - 0.25
        assert torch.equal(embedded.unpack(data), codec.unpack(data))  # the ids are the same


# ---- codes


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("size", [(64, 64), (35, 90)])
def test_files_hold_codes_exactly(
    name: str, size: tuple[int, int], folder: Path, pixels: MakePixels
) -> None:
    codec, source = load(name, folder), pixels(*size)
    data = codec.compress(source)
    header = bitstream.loads(data).header
    assert isinstance(header.quantizer, CodeIndices)
    assert header.coder_id == FILE_TABLES_ID
    model, padded = codec.autoencoder, images.pad(source, codec.multiple)
    x = torch.from_numpy(images.to_unit(padded))[None]
    with torch.no_grad():
        encoded = model.encode(x)
        if name.startswith("vqmodel"):
            shape = encoded.latents.permute(0, 2, 3, 1).shape
            indices = model.quantize(encoded.latents)[2][2]
            expected = model.quantize.get_codebook_entry(indices, shape)
            sample = model.decode(encoded.latents).sample
        else:
            expected = model.indices_to_latents(encoded.indices)
            sample = model.decode(expected).sample
    unpacked = codec._packer.unpack(bitstream.loads(data))
    np.testing.assert_array_equal(unpacked, expected[0].numpy())
    assert codec.latent_channels == expected.shape[1]
    whole = images.from_unit(sample[0].numpy())[: size[0], : size[1]].astype(int)
    decoded = np.asarray(codec.decompress(data)).astype(int)
    assert np.abs(decoded - whole).max() <= 1
    repacked = bitstream.loads(codec.pack(codec.unpack(data)))
    assert repacked.header.symbols_crc32 == header.symbols_crc32


def test_near_codes_are_told_apart(tmp_path: Path, pixels: MakePixels) -> None:
    """Sums of squares, by which VQModel itself searches, cannot tell these codes apart."""
    directory = save_model("vqmodel", tmp_path)
    codec = Codec.from_pretrained(directory, device="cpu", dtype="fp32")
    table = codec.autoencoder.quantize.embedding.weight.data
    table.copy_(1000 + torch.arange(16.0)[:, None] * 1e-3)
    codec.autoencoder.save_pretrained(directory)
    for dtype in ("fp32", "bf16"):
        codec = Codec.from_pretrained(directory, device="cpu", dtype=dtype)
        raw_latents = table[torch.arange(16)].T.reshape(1, 3, 4, 4)
        data = codec.pack(codec._scaling.scale(raw_latents.double()).float())
        assert len(np.unique(codec._packer.unpack(bitstream.loads(data)))) == 16


@pytest.mark.parametrize("settings", [{"quality": 50}, {"step": 0.3}])
def test_codes_have_no_quality(settings: dict[str, Any], folder: Path, pixels: MakePixels) -> None:
    kind = next(iter(settings))
    with pytest.raises(QuantizerError, match=f"found a {kind} for VQModel, expected none"):
        load("vqmodel", folder).compress(pixels(8, 8), **settings)


def test_codes_that_files_cannot_hold_are_named(tmp_path: Path, pixels: MakePixels) -> None:
    from codec import LatentAutoencoder
    from tests.conftest import TINY

    large = LatentAutoencoder(**TINY, bottleneck="fsq", fsq_levels=(16, 16, 16, 17))
    large.save_pretrained(tmp_path)
    codec = Codec.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(LatentsError, match="codebook of 69632 codes, expected at most 65536"):
        codec.compress(pixels(16, 16))


def test_odd_grids_of_two_levels_are_named(folder: Path) -> None:
    with pytest.raises(LatentsError, match="5x4 cells, expected sides that are multiples of 2"):
        load("vq2", folder).pack(torch.zeros(4, 4, 5))


# ---- which model reads which file


def test_models_are_hashed_when_a_file_is_made_not_before(
    folder: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    compute = identity.latent_id
    monkeypatch.setattr(identity, "latent_id", lambda d: calls.append(d) or compute(d))
    codec = load("tiny", folder)
    codec.decode(codec.encode(pixels(8, 8)))
    assert (codec.name, calls) == ("AutoencoderTiny", [])
    codec.compress([pixels(8, 8), pixels(8, 8)])
    assert codec.info is not None
    assert codec.info.latent_id == compute(folder / "tiny")
    assert len(calls) == 1


def test_files_find_their_model_by_its_weights(
    folder: Path, tmp_path: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, other = load("kl", folder), load("tiny", folder)
    data = codec.compress(pixels(20, 30))
    with pytest.raises(
        UnknownModelError,
        match=r"tables in the file; AutoencoderTiny reads .*the autoencoder's directory with --mod",
    ):
        other.decompress(data)
    models = tmp_path / "models"
    shutil.copytree(folder / "tiny", models / "first")
    shutil.copytree(folder / "kl", models / "pipeline" / "vae")
    (models / "notes").mkdir()
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(models))
    names = [info.name for info in catalog.known_models()]
    assert names[-2:] == ["AutoencoderTiny", "AutoencoderKL"]
    header = bitstream.loads(data).header
    found = catalog.find_model(header.latent_id, header.coder_id)
    assert found.directory == models / "pipeline" / "vae"
    np.testing.assert_array_equal(other.decompress(data), codec.decompress(data))
    monkeypatch.setattr(catalog, "foreign_info", None)  # never hashed for files with a coder
    with pytest.raises(UnknownModelError, match="coder 0123456789abcdef"):
        catalog.find_model(header.latent_id, "0123456789abcdef")


def test_ids_follow_the_weights_and_not_what_saved_them(folder: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(directory_of("kl", folder), tmp_path / "kl"))
    before = checkpoint.foreign_info(directory)
    config = json.loads((directory / "config.json").read_text())
    for key in ("use_quant_conv", "mid_block_add_attention", "shift_factor"):  # of later releases
        del config[key]
    (directory / "config.json").write_text(json.dumps({**config, "sample_size": 768}))
    assert checkpoint.foreign_info(directory) == before
    (directory / "config.json").write_text(json.dumps({**config, "act_fn": "gelu"}))
    changed = checkpoint.foreign_info(directory)
    assert changed.latent_id != before.latent_id
    assert changed.decoder_id != before.decoder_id


def test_directories_that_are_no_autoencoder_are_named(folder: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(directory_of("kl", folder), tmp_path / "kl"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "block_out_channels": None}))
    with pytest.raises(ModelError, match=r"no usable 'encoder_block_out_channels' in .*config"):
        checkpoint.foreign_info(directory)
    (directory / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ModelError, match="found a model of class 'UNet2DModel'"):
        checkpoint.foreign_info(directory)


def test_tables_and_quality_must_be_those_of_the_model(
    model_dir: Path, folder: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(directory_of("vqmodel", folder), tmp_path / "vq"))
    shutil.copy(model_dir / "entropy.safetensors", directory)
    for quality, step in ((50, 0.3), (None, None)):
        checkpoint.finalize(
            directory,
            name="vq",
            default_quality=quality,
            quality_50_step=step,
            license_name="CC0-1.0",
            summary="Wrong tables.",
        )
        with pytest.raises(ModelError, match="not those of an autoencoder with 1 codebooks"):
            Codec.from_pretrained(directory)
    with pytest.raises(ModelError, match=r"default_quality = 50 beside quality_50_step = None"):
        checkpoint.finalize(
            directory,
            name="vq",
            default_quality=50,
            quality_50_step=None,
            license_name="CC0-1.0",
            summary="Half a scale.",
        )


# ---- damaged files


def replaced(file: LatentFile, **changes: Any) -> bytes:
    return bitstream.dumps(dataclasses.replace(file, **changes))


@pytest.mark.parametrize("name", ["kl", "vqmodel"])
def test_damage_is_a_typed_error(name: str, folder: Path, pixels: MakePixels) -> None:
    codec = load(name, folder)
    data = codec.compress(pixels(40, 40))
    file = bitstream.loads(data)
    assert file.tables is not None
    with pytest.raises(InvalidTablesError, match="of kind 9"):
        codec.decompress(replaced(file, tables=b"\x09" + file.tables[1:]))
    with pytest.raises(InvalidTablesError, match="ends after"):
        codec.decompress(replaced(file, tables=file.tables[:-1]))
    changed = bytearray(file.payload)
    changed[len(changed) // 2] ^= 4
    with pytest.raises(SymbolMismatchError):
        codec.unpack(replaced(file, payload=bytes(changed)))
    wrong = dataclasses.replace(file.header, symbols_crc32=file.header.symbols_crc32 ^ 1)
    with pytest.raises(SymbolMismatchError):
        codec.decompress(replaced(file, header=wrong))
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 16
        with pytest.raises(bitstream.BitstreamError):
            codec.decompress(bytes(damaged))
    with pytest.raises(CorruptFileError, match="tABL chunk does not match its checksum"):
        codec.decompress(data.replace(b"TABL", b"tABL"))


def test_sizes_and_kinds_that_do_not_fit_the_model_are_refused(
    folder: Path, pixels: MakePixels
) -> None:
    kl, vq = load("kl", folder), load("vqmodel", folder)
    steps, codes = (bitstream.loads(c.compress(pixels(20, 20))) for c in (kl, vq))
    assert isinstance(codes.header.quantizer, CodeIndices)
    (grid,) = codes.header.quantizer.grids
    smaller, fewer = (dataclasses.replace(grid, **c) for c in ({"rows": 9}, {"num_codes": 15}))
    for codec, file, wrong in (
        (kl, steps, codes.header.quantizer),
        (kl, steps, ChannelSteps((3, 10, 10), (1, 1, 1))),
        (kl, steps, ChannelSteps((4, 10, 11), (1, 1, 1, 1))),
        (vq, codes, steps.header.quantizer),
        (vq, codes, CodeIndices((smaller,))),
        (vq, codes, CodeIndices((fewer,))),
        (vq, codes, CodeIndices((grid, grid))),
    ):
        header = dataclasses.replace(file.header, quantizer=wrong)
        with pytest.raises(InvalidHeaderError, match="not made by the model that it names"):
            codec.decompress(replaced(file, header=header))


def test_tables_in_a_file_serve_one_step_too(folder: Path, pixels: MakePixels) -> None:
    """No writer of ours makes such a file; the format has it."""
    codec = load("kl", folder)
    file = bitstream.loads(codec.compress(pixels(20, 20)))
    header = dataclasses.replace(file.header, quantizer=OneStep((4, 10, 10), 2**15))
    symbols = codec.unpack(replaced(file, header=header)) / codec._scaling.scaling_factor * 2
    torch.testing.assert_close(symbols, symbols.round())


# ---- the command line


@pytest.mark.parametrize("name", ["kl-f8c16", "tiny", "dc-f32", "vqmodel"])
def test_commands_work_with_a_directory(
    name: str, folder: Path, tmp_path: Path, pixels: MakePixels, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in words])
        return int(ended.value.code or 0)

    directory = directory_of(name, folder)
    photo, packed, back = (tmp_path / n for n in ("photo.png", "photo.lc", "back.png"))
    images.save(pixels(50, 70), photo)
    assert run("encode", photo, "-o", packed, "--model", directory) == 0
    assert run("decode", packed, "-o", back) == 1
    assert "the autoencoder's directory with --model DIR" in capsys.readouterr().err
    assert run("decode", packed, "-o", back, "--model", directory) == 0
    codec = Codec.from_pretrained(directory)
    np.testing.assert_array_equal(images.load(back).pixels, np.asarray(codec.decompress(packed)))
    capsys.readouterr()
    assert run("info", packed, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["coder_id"], report["model_directory"]) == (FILE_TABLES_ID, None)
    assert report["tables_bytes"] > 0
    assert run("info", packed) == 0
    is_discrete = name in DISCRETE
    options = ("--quality", "70") if is_discrete else ("--step", "0.1")
    assert run("encode", photo, "-o", tmp_path / "b.lc", "-m", directory, *options) == is_discrete
    assert (tmp_path / "b.lc").exists() != is_discrete


def test_listed_models_and_an_evaluation(
    folder: Path,
    tmp_path: Path,
    pixels: MakePixels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from eval.rate_distortion import evaluate_images

    models = tmp_path / "models"
    for name in ("kl", "vqmodel"):
        shutil.copytree(directory_of(name, folder), models / name)
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(models))
    with pytest.raises(SystemExit):
        console.run(app, ["models", "--json"])
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["AutoencoderKL"]["default_quality"] == 50
    assert listed["VQModel"]["default_quality"] is None
    with pytest.raises(SystemExit):
        console.run(app, ["models"])
    assert "codes, no quality" in capsys.readouterr().out
    images.save(pixels(40, 40), tmp_path / "a.png")
    for name, quality in (("kl", 50), ("vqmodel", None)):
        evaluation = evaluate_images(load(name, folder), [tmp_path / "a.png"])
        assert (evaluation.settings.quality, evaluation.settings.step) == (quality, None)
        assert not evaluation.errors
        assert evaluation.ids.coder_id == FILE_TABLES_ID
