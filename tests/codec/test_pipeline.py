"""Codec: tensors, files, other people's autoencoders, dtypes."""

import dataclasses
import io
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from codec import Codec, LatentAutoencoder, backbone, bitstream, catalog, device, images, quantizer
from codec.bitstream import InvalidHeaderError, OneStep
from codec.catalog import UnknownModelError
from codec.device import DeviceError
from codec.entropy import SymbolCoder
from codec.entropy.context_coder import ContextCoder
from codec.identity import ModelError
from codec.latents import LatentsError
from codec.packing import SymbolMismatchError, read_file
from codec.pipeline import ImageWarning, MissingCoderError
from codec.quantizer import QuantizerError

MakePixels = Callable[..., images.Pixels]


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, device="cpu", dtype="fp32")


def header_of(data: bytes) -> bitstream.Header:
    return bitstream.loads(data).header


# ---- images to files and back


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (7, 9), (64, 64), (65, 130)])
@pytest.mark.parametrize("gray", [False, True])
def test_size_and_mode_come_back(
    codec: Codec, pixels: MakePixels, height: int, width: int, gray: bool
) -> None:
    source = pixels(height, width)[..., 0] if gray else pixels(height, width)
    data = codec.compress(source)
    image = codec.decompress(data)
    assert image.size == (width, height)
    assert image.mode == ("L" if gray else "RGB")
    header = header_of(data)
    assert header.latent_shape == (4, -(-height // 8), -(-width // 8))
    assert header.name == "tiny"


def test_file_holds_the_quantised_latents_and_their_decoding(
    codec: Codec, pixels: MakePixels
) -> None:
    source = pixels(64, 96)
    data = codec.compress(source, step=0.01)
    latents = codec.unpack(data)
    assert (latents - codec.encode(source)).abs().max() <= 0.01 / 2 * 0.5 + 1e-6  # scaled by 0.5
    decoded = images.from_unit(codec.decode(latents)[0].numpy())
    np.testing.assert_array_equal(np.asarray(codec.decompress(data)), decoded)


def test_pixels_of_decompress_and_reconstruct_agree(codec: Codec, pixels: MakePixels) -> None:
    data = codec.compress(pixels(50, 70))
    image = codec.reconstruct(data)
    np.testing.assert_array_equal(np.asarray(codec.decompress(data)), image.pixels)
    assert not image.is_gray


def test_every_kind_of_source_gives_the_same_bytes(
    codec: Codec, pixels: MakePixels, tmp_path: Path
) -> None:
    array = pixels(33, 47)
    picture = PIL.Image.fromarray(array)
    picture.save(tmp_path / "image.png")
    expected = codec.compress(array)
    with (tmp_path / "image.png").open("rb") as stream:
        sources = [picture, tmp_path / "image.png", str(tmp_path / "image.png"), stream]
        assert codec.compress(sources) == [expected] * 4


def test_batch_gives_the_bytes_of_single_files(codec: Codec, pixels: MakePixels) -> None:
    sources = [pixels(40, 40), pixels(17, 90, 1), pixels(40, 40, 2)]
    batch = codec.compress(sources)
    assert batch == [codec.compress(source) for source in sources]
    assert [image.size for image in codec.decompress(batch)] == [(40, 40), (90, 17), (40, 40)]


def test_path_and_stream_decompress_too(codec: Codec, pixels: MakePixels, tmp_path: Path) -> None:
    data = codec.compress(pixels(24, 24))
    path = tmp_path / "image.lc"
    path.write_bytes(data)
    expected = codec.decompress(data)
    assert codec.decompress([path, str(path), io.BytesIO(data)]) == [expected] * 3


def test_quality_is_monotonic_in_size_and_error(codec: Codec, pixels: MakePixels) -> None:
    source = pixels(96, 96)
    files = [codec.compress(source, quality) for quality in (1, 20, 40, 60, 80, 100)]
    sizes = [len(data) for data in files]
    assert sizes == sorted(set(sizes))
    latents = codec.encode(source)
    errors = [float((codec.unpack(data) - latents).square().mean()) for data in files]
    assert errors == sorted(errors, reverse=True)
    assert codec.compress(source) == codec.compress(source, quality=50)


def test_quality_steps_are_pinned() -> None:
    assert quantizer.step_from_quality(50, 0.4) == round(0.4 * 65536)
    assert quantizer.step_from_quality(62, 0.4) == round(0.2 * 65536)
    steps = [quantizer.step_from_quality(quality, 0.4) for quality in range(1, 101)]
    assert steps == sorted(set(steps), reverse=True)
    assert quantizer.step_from_size(1e-9) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": 0},
        {"quality": 101},
        {"step": 0.0},
        {"step": float("nan")},
        {"step": -1.0},
        {"step": 65536.0},
        {"quality": 50, "step": 0.4},
    ],
)
def test_settings_out_of_range_are_refused(
    codec: Codec, pixels: MakePixels, settings: dict[str, float]
) -> None:
    with pytest.raises(QuantizerError, match="expected"):
        codec.compress(pixels(8, 8), **settings)


def test_latents_that_overflow_are_refused() -> None:
    for value in (np.nan, np.inf, 1e9):
        with pytest.raises(QuantizerError, match="steps from zero"):
            quantizer.quantize(np.full((1, 2, 2), value, np.float32), 65536)


def test_alpha_warns_or_is_refused(codec: Codec) -> None:
    picture = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 100))
    with pytest.warns(ImageWarning, match="transparent"):
        codec.compress(picture)
    with pytest.raises(images.ImageError, match="transparent"):
        codec.compress(picture, strict=True)


def test_symbols_do_not_depend_on_the_reader(
    codec: Codec, model_dir: Path, pixels: MakePixels
) -> None:
    bf16 = Codec.from_pretrained(model_dir, device="cpu", dtype="bf16")
    for writer in (codec, bf16):
        data = writer.compress(pixels(72, 100))
        assert torch.equal(codec.unpack(data), bf16.unpack(data))
        difference = np.asarray(codec.decompress(data), int) - np.asarray(bf16.decompress(data))
        assert np.abs(difference).max() <= 8


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_symbols_do_not_depend_on_compilation(
    model_dir: Path, pixels: MakePixels, backend: str
) -> None:
    """A file written by a compiled network is read by a plain one to its symbols, and back."""
    plain, compiled = (Codec.from_pretrained(model_dir, device="cpu") for _ in range(2))
    for name in ("encode", "decode"):
        method = getattr(compiled.autoencoder, name)
        setattr(compiled.autoencoder, name, torch.compile(method, backend=backend))
    for writer in (plain, compiled):
        data = writer.compress(pixels(64, 64))
        file = read_file(data)
        assert isinstance(file.header.quantizer, OneStep)
        step = file.header.quantizer.step
        coder = writer.coder
        assert isinstance(coder, SymbolCoder | ContextCoder)
        symbols = coder.decode(file.payload, file.header.quantizer.shape, step)
        assert coder.encode(symbols, step) == file.payload
        assert torch.equal(plain.unpack(data), compiled.unpack(data))


@pytest.mark.parametrize("quality", [30, 50])
def test_latents_of_a_batch_are_packed_as_each_by_itself(codec: Codec, quality: int) -> None:
    packer = codec._packer
    step, sizes = packer.step_units(quality, None), [(80, 48), (73, 41), (79, 48)]
    random = np.random.default_rng(0)
    raw = random.normal(size=(3, codec.latent_channels, 6, 10)).astype(np.float32)
    together = packer.pack_batch(raw, step, sizes)
    assert together == [packer.pack(one, step, size) for one, size in zip(raw, sizes, strict=True)]
    assert read_file(together[1]).header.width == 73


def test_the_default_quality_rounds(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of quality 50 is whole, so its quality is 49.9999: no reason to choose symbols."""
    coder = codec.coder
    assert coder is not None
    monkeypatch.delattr(type(coder), "quantize")
    latents = torch.zeros(codec.latent_channels, 4, 4)
    assert codec.pack(latents, quality=50) == codec.pack(latents)
    with pytest.raises(AttributeError, match="quantize"):
        codec.pack(latents, quality=40)


def test_tiles_match_the_whole(
    codec: Codec, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pixels(200, 328)
    whole = backbone.encode_pixels(codec.autoencoder, source)
    decoded = backbone.decode_pixels(codec.autoencoder, whole).astype(int)
    monkeypatch.setattr(backbone, "TILE_CELLS", 7)
    with torch.no_grad():
        tiled = backbone.encode_pixels(codec.autoencoder, source)
        assert np.abs(tiled - whole).max() < 1e-4
        assert np.abs(backbone.decode_pixels(codec.autoencoder, whole) - decoded).max() <= 1


def test_read_only_arrays_are_taken(codec: Codec, pixels: MakePixels) -> None:
    array = pixels(16, 16)
    array.setflags(write=False)
    assert codec.decompress(codec.compress(array)).size == (16, 16)


# ---- tensors


def test_encode_of_tensors_and_images_agree(codec: Codec, pixels: MakePixels) -> None:
    source = pixels(48, 64)
    tensor = torch.from_numpy(images.to_unit(source))
    latents = codec.encode(tensor[None])
    assert latents.shape == (1, 4, 6, 8)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(codec.encode(tensor), latents)
    torch.testing.assert_close(codec.encode(source), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.encode([source, source]), latents.repeat(2, 1, 1, 1))


def test_latents_are_scaled_by_the_configuration(codec: Codec, pixels: MakePixels) -> None:
    x = torch.from_numpy(images.to_unit(pixels(16, 16)))[None]
    raw_latents = codec.autoencoder.encode(x).latent_dist.mode()
    torch.testing.assert_close(codec.encode(x), (raw_latents - 0.25) * 0.5)


def test_list_of_different_sizes_gives_a_list(codec: Codec, pixels: MakePixels) -> None:
    latents = codec.encode([pixels(16, 24), pixels(9, 8)])
    assert [tuple(part.shape) for part in latents] == [(1, 4, 2, 3), (1, 4, 2, 1)]
    decoded = codec.decode(latents)
    assert [tuple(part.shape) for part in decoded] == [(1, 3, 16, 24), (1, 3, 16, 8)]


def test_odd_tensor_sizes_are_padded_by_repetition(codec: Codec) -> None:
    x = torch.rand(2, 3, 13, 20) * 2 - 1
    padded = torch.nn.functional.pad(x, (0, 4, 0, 3), mode="replicate")
    torch.testing.assert_close(codec.encode(x), codec.encode(padded))


def test_decode_gives_clamped_float32(codec: Codec) -> None:
    decoded = codec.decode(torch.randn(2, 4, 3, 3, dtype=torch.float16) * 100)
    assert decoded.shape == (2, 3, 24, 24)
    assert decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1
    assert codec.decode(torch.randn(4, 3, 3)).shape == (1, 3, 24, 24)


def test_latents_may_be_trained_on(codec: Codec) -> None:
    weight = torch.ones(1, requires_grad=True)
    (codec.encode(torch.zeros(1, 3, 16, 16)) * weight).square().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "floats in"),
        (lambda c: c.encode(torch.zeros(1, 1, 16, 16)), "shape"),
        (lambda c: c.encode([]), "empty list"),
        (lambda c: c.decode(torch.zeros(1, 5, 2, 2)), r"expected \(N, 4, h, w\)"),
        (lambda c: c.decode(torch.zeros(1, 4, 2, 2, dtype=torch.int64)), "expected floats"),
        (lambda c: c.pack(torch.zeros(2, 4, 2, 2)), "pack each by itself"),
    ],
)
def test_wrong_tensors_are_named(codec: Codec, call: Callable[[Codec], Any], message: str) -> None:
    with pytest.raises(LatentsError, match=message):
        call(codec)


def test_pack_and_unpack_need_no_pixels(codec: Codec) -> None:
    latents = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(3)) * 0.1
    data = codec.pack(latents, step=1 / 1024)
    header = header_of(data)
    assert (header.width, header.height) == (56, 40)
    unpacked = codec.unpack(data)
    assert unpacked.shape == (1, 4, 5, 7)
    assert (unpacked[0] - latents).abs().max() <= 0.5 / 1024 * 0.5 + 1e-6
    assert codec.pack(unpacked, step=1 / 1024) == data
    assert codec.decompress(data).size == (56, 40)


# ---- which model reads which file


def test_file_of_another_model_is_read_if_it_is_at_hand(
    codec: Codec, other_model_dir: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    other = Codec.from_pretrained(other_model_dir, device="cpu", dtype="fp32")
    data = other.compress(pixels(30, 30))
    with pytest.raises(UnknownModelError, match=header_of(data).latent_id):
        codec.decompress(data)
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(other_model_dir))
    assert codec.decompress(data) == other.decompress(data)
    assert torch.equal(codec.unpack(data), other.unpack(data))


def test_embedded_model_loads_without_network(
    model_dir: Path, tmp_path: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    shutil.copytree(model_dir, tmp_path / "tiny")
    monkeypatch.setattr(catalog, "EMBEDDED_FOLDER", tmp_path)
    monkeypatch.setattr(catalog, "DEFAULT_MODEL", "tiny")
    monkeypatch.setattr(socket, "socket", refuse)
    codec = Codec.from_pretrained()
    assert codec.name == "tiny"
    assert codec.decompress(codec.compress(pixels(20, 20))).size == (20, 20)


def test_other_symbols_than_coded_are_never_a_picture(codec: Codec, pixels: MakePixels) -> None:
    file = bitstream.loads(codec.compress(pixels(32, 32)))
    header = dataclasses.replace(file.header, symbols_crc32=file.header.symbols_crc32 ^ 1)
    with pytest.raises(SymbolMismatchError):
        codec.decompress(bitstream.dumps(dataclasses.replace(file, header=header)))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 9},
        {"quantizer": OneStep((4, 4, 5), 100)},
        {"quantizer": OneStep((3, 4, 4), 100)},
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    codec: Codec, pixels: MakePixels, changes: dict[str, Any]
) -> None:
    file = bitstream.loads(codec.compress(pixels(32, 32)))
    header = dataclasses.replace(file.header, **changes)
    with pytest.raises(InvalidHeaderError, match="was not made by the model"):
        codec.unpack(bitstream.dumps(dataclasses.replace(file, header=header)))


def test_broken_model_directories_are_named(model_dir: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(model_dir, tmp_path / "copied"))
    (copied / "entropy.safetensors").unlink()
    with pytest.raises(ModelError, match=r"found no entropy\.safetensors"):
        Codec.from_pretrained(copied)
    (copied / "codec.json").unlink()
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace('"LatentAutoencoder"', '"Evil"'))
    with pytest.raises(ModelError, match=r"class 'Evil'.*expected one of LatentAutoencoder"):
        Codec.from_pretrained(copied)
    (copied / "config.json").write_text(
        config.replace('"latent_channels": 4', '"latent_channels": 6')
    )
    with pytest.raises(ModelError, match="weights do not fit"):
        Codec.from_pretrained(copied)


def test_model_at_hand_is_wrapped() -> None:
    codec = Codec(LatentAutoencoder(), device="cpu", dtype=torch.float32)
    latents = codec.encode(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, 4, 8, 8)
    assert codec.info is None
    with pytest.raises(MissingCoderError, match=r"without a directory .*save_pretrained"):
        codec.pack(latents)


# ---- devices and dtypes


@pytest.mark.parametrize("isa", ["AVX512_CORE", "avx2", "SSE41", "AVX512_CORE_VNNI"])
def test_dtype_is_float32_where_onednn_may_not_multiply_bf16(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bf16_units", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    cpu = torch.device("cpu")
    assert device.choose_dtype(cpu) == torch.bfloat16
    assert device.choose_dtype(cpu, force_upcast=True) == torch.float32
    assert device.choose_dtype(cpu, "fp16") == torch.float16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert device.choose_dtype(cpu) == torch.float32
    assert device.choose_dtype(cpu, torch.bfloat16) == torch.bfloat16


def test_dtype_is_float32_on_a_processor_without_bf16_units(
    model_dir: Path, pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bf16_units", lambda: False)
    codec = Codec.from_pretrained(model_dir, device="cpu")
    assert codec.dtype == torch.float32
    assert codec.autoencoder.dtype == torch.float32
    assert codec.decompress(codec.compress(pixels(9, 9))).size == (9, 9)


def test_unknown_devices_and_dtypes_are_named(model_dir: Path) -> None:
    with pytest.raises(DeviceError, match="'cpu' or 'cuda'"):
        Codec.from_pretrained(model_dir, device="toaster")
    with pytest.raises(DeviceError, match="torch sees"):
        Codec.from_pretrained(model_dir, device="cuda:99")
    with pytest.raises(DeviceError, match="expected one of float32"):
        Codec.from_pretrained(model_dir, dtype="int8")


@pytest.mark.gpu
def test_symbols_written_on_a_gpu_decode_on_a_cpu(model_dir: Path, pixels: MakePixels) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    gpu = Codec.from_pretrained(model_dir, device="cuda")
    data = gpu.compress(pixels(200, 300))
    cpu = Codec.from_pretrained(model_dir, device="cpu")
    assert torch.equal(gpu.unpack(data).cpu(), cpu.unpack(data))
    difference = np.asarray(gpu.decompress(data), int) - np.asarray(cpu.decompress(data))
    assert np.abs(difference).max() <= 8
