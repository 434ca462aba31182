"""The embedded weights: complete, offline, frozen, and as good as the README says."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import Codec, images, quantizer
from codec.catalog import DEFAULT_MODEL, embedded_models
from codec.entropy.context_coder import ContextCoder
from codec.packing import read_file
from eval.demo import packaged_samples
from eval.latents.entropy import order0_bits
from eval.lpips import BackboneError, load_lpips
from eval.metrics import psnr
from eval.rate_distortion import evaluate_images

GOLDEN = Path(__file__).parent / "golden"
KODAK = Path(os.environ.get("LATENT_CODEC_SHARED", "none")) / "data" / "kodak"
MIB = 2**20


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.from_pretrained(device="cpu")


def golden_symbols() -> np.ndarray:
    """Fixed symbols (4, 12, 16): a smooth part, an edge, a pattern, and one far outlier."""
    c, y, x = np.mgrid[:4, :12, :16]
    symbols = (c + 1) * (x - 2 * y) // 8 + 5 * ((x > 7) & (c % 2 == 0)) + (x * y * (c + 3)) % 3
    symbols[1, 5, 5] = -900
    return symbols.astype(np.int32)


def test_all_files_are_small_and_their_ids_are_right() -> None:
    names = [model.name for model in embedded_models()]
    assert DEFAULT_MODEL in names
    for model in embedded_models():
        assert model.size_bytes <= 16 * MIB
        model.verify()
        card = (model.directory / "README.md").read_text(encoding="utf-8")
        assert "non-commercial" in card
        assert "/home/" not in card


def test_loading_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert Codec.from_pretrained(device="cpu").name == DEFAULT_MODEL


def test_the_network_is_within_its_budget(codec: Codec) -> None:
    assert codec.autoencoder.num_parameters() <= 7_500_000
    assert codec.factor == 8
    assert codec.latent_channels == 4


@pytest.mark.parametrize("name", ["kl-f8d4", "kl-f8d4-context", "kl-f8d4-context-80"])
def test_golden_files_decode_to_their_symbols(codec: Codec, name: str) -> None:
    """What was written once decodes for ever, by tables that the model had before as well."""
    path = GOLDEN / f"{name}.lc"
    file = read_file(path)
    assert file.header.step is not None
    latents = codec.unpack(path)[0] / codec.autoencoder.config.scaling_factor
    expected = quantizer.dequantize(golden_symbols(), file.header.step)
    assert np.allclose(latents.numpy() + codec.autoencoder.config.shift_factor, expected, atol=1e-3)
    assert codec.decompress(path).size == (128, 96)


def test_the_golden_symbols_are_coded_to_the_golden_bytes(codec: Codec) -> None:
    file = read_file(GOLDEN / "kl-f8d4-context-80.lc")
    assert isinstance(codec.coder, ContextCoder)
    assert codec.info is not None
    assert file.header.coder_id == codec.info.coder_id
    assert file.header.step is not None
    assert codec.coder.encode(golden_symbols(), file.header.step) == file.payload


def test_a_file_decodes_alike_for_all_dtypes_threads_and_processors(
    codec: Codec, tmp_path: Path, pixels
) -> None:  # type: ignore[no-untyped-def]
    """Encoded in bfloat16 here; symbols and nearly all pixels are the same elsewhere."""
    path = tmp_path / "a.lc"
    writer = Codec.from_pretrained(device="cpu", dtype="bfloat16")
    path.write_bytes(writer.compress(pixels(150, 200)))
    code = (
        "import sys, numpy as np; from codec import Codec\n"
        "c = Codec.from_pretrained(device='cpu')\n"
        "z = c.unpack(sys.argv[1]); i = np.asarray(c.decompress(sys.argv[1]))\n"
        "np.savez(sys.argv[2], z=z.numpy(), i=i); print(c.dtype)"
    )
    expected = writer.unpack(path).numpy()
    for name, settings in {
        "one": {"OMP_NUM_THREADS": "1"},
        "two": {"OMP_NUM_THREADS": "2"},
        "old": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    }.items():
        output = tmp_path / f"{name}.npz"
        command = [sys.executable, "-c", code, str(path), str(output)]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert name != "old" or "float32" in done.stdout
        found = np.load(output)
        assert np.array_equal(found["z"], expected)
        difference = np.abs(
            found["i"].astype(int) - np.asarray(writer.decompress(path)).astype(int)
        )
        assert difference.max() <= 4
        assert difference.mean() < 0.5


def test_tiled_and_whole_differ_by_at_most_one(pixels) -> None:  # type: ignore[no-untyped-def]
    codec = Codec.from_pretrained(device="cpu", dtype="float32")
    picture = pixels(264, 328)
    x = torch.from_numpy(images.to_unit(picture))[None]
    with torch.no_grad():
        whole = codec.autoencoder(x)
        codec.autoencoder.tile_cells = 12
        codec.autoencoder.enable_tiling()
        tiled = codec.autoencoder(x)
        codec.autoencoder.disable_tiling()
    first, second = (
        images.from_unit(part.sample[0].numpy()).astype(int) for part in (whole, tiled)
    )
    assert np.abs(first - second).max() <= 1


def test_photographs_take_fewer_bytes_than_their_order_0_entropy(codec: Codec) -> None:
    """Real latents, coded with tables that never saw them, against each image's own histogram."""
    coder = codec._coder
    assert coder is not None
    coded, entropy, estimated = 0, 0.0, 0.0
    for sample in packaged_samples():
        file = read_file(codec.compress(sample.path))
        step = file.header.step
        symbols = coder.decode(file.payload, file.header.latent_shape, step)
        coded += len(file.payload)
        entropy += order0_bits(symbols) / 8
        estimated += coder.estimate_bits(symbols, step) / 8
    assert coded < 0.9 * entropy
    assert coded == pytest.approx(estimated, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_photograph_takes_little_memory(tmp_path: Path, pixels) -> None:  # type: ignore[no-untyped-def]
    """Cold start and round trip of 768x512 pixels in a process of its own.

    Not `ru_maxrss`, which a child inherits from the process that started it.
    """
    images.save(pixels(512, 768), tmp_path / "a.png")
    code = (
        "from codec import Codec; codec = Codec.from_pretrained(device='cpu')\n"
        "codec.decompress(codec.compress('a.png')).save('b.png')\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "b.png").is_file(), done.stderr
    assert int(done.stdout.split()[1]) * 1024 < 1.2e9


def test_kodak(codec: Codec) -> None:
    """From real files at the default quality; Kodak is for evaluation only."""
    if not KODAK.is_dir():
        pytest.skip("no Kodak images: set LATENT_CODEC_SHARED to a folder with data/kodak")
    try:
        distance = load_lpips("squeeze")
    except BackboneError as error:
        pytest.skip(f"no LPIPS backbone at hand: {error}")
    evaluation = evaluate_images(codec, sorted(KODAK.glob("*.png")), distance=distance)
    content = json.loads(evaluation.to_json())
    assert len(content["images"]) == 24
    first = KODAK / content["images"][0]["name"]
    original = images.load(first).pixels
    decompressed = np.asarray(codec.decompress(codec.compress(first)))
    assert psnr(original, decompressed) == content["images"][0]["psnr"]
    mean = content["mean"]
    assert mean["psnr"] >= 25.8
    assert mean["lpips"] <= 0.125
    assert mean["bpp"] <= 0.25
    assert mean["ms_ssim"] >= 0.9


def test_the_embedded_prior_draws_what_is_asked() -> None:
    """Small enough to embed, and its seeds are images of the class; no network is needed."""
    from codec.prior import open_prior
    from codec.prior.directory import embedded_priors
    from codec.prior.opening import DiffusionPrior

    (info,) = embedded_priors()
    weights = info.directory / "denoiser" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= 16 * 2**20
    assert len(info.class_names) == 10
    prior = open_prior(device="cpu", dtype="float32")
    assert isinstance(prior, DiffusionPrior)
    pants = info.class_number("pants")
    first, second = prior.sample([pants, None], seeds=[4, 4], steps=8)
    assert first.shape == second.shape == (256, 256, 3)
    # A pair of trousers: dark in the middle of the upper half, light at both sides of it.
    gray = first.mean(axis=2)
    assert gray[40:120, 100:150].mean() + 40 < gray[40:120, [*range(25), *range(231, 256)]].mean()
    assert np.abs(first.astype(int) - second).mean() > 10
