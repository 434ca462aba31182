"""Files of models with codes and a coder of their own, and the golden one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codec import Codec, checkpoint, identity
from codec.bitstream import CodeIndices, Grid
from codec.checkpoint import ModelInfo
from codec.entropy import PayloadError
from codec.entropy.index_coder import IndexCoder
from codec.errors import LatentCodecError
from codec.identity import ENTROPY_FILE, ModelError
from codec.images import Pixels
from codec.packing import SymbolMismatchError, pack_indices, read_file, unpack_indices
from tests.codec.foreign_models import save_model
from tests.codec.index_coders import golden_indices, handmade

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "indices.lc"
GRIDS = (Grid(50, 9, 5), Grid(300, 18, 10))
CODER_ID = "68908fc3088eefdc"
MakePixels = Callable[..., Pixels]


def golden_info() -> ModelInfo:
    return ModelInfo(
        directory=Path("nowhere"),
        name="golden indices",
        latent_id="0123456789abcdef",
        coder_id=CODER_ID,
        decoder_id="fedcba9876543210",
        accepts=("0123456789abcdef",),
        default_quality=None,
        quality_50_step=None,
        license_name="CC0-1.0",
        summary="Numbers.",
    )


def test_the_golden_file_is_written_and_read(tmp_path: Path) -> None:
    coder = handmade(50, 300)
    coder.save(tmp_path / ENTROPY_FILE)
    assert identity.coder_id(tmp_path) == CODER_ID
    data = pack_indices(
        golden_indices(), info=golden_info(), coder=coder, grids=GRIDS, size=(75, 140)
    )
    assert data == GOLDEN.read_bytes()
    file = read_file(GOLDEN)
    assert file.header.quantizer == CodeIndices(GRIDS)
    assert file.tables is None
    for found, expected in zip(
        unpack_indices(file, coder=coder, grids=GRIDS), golden_indices(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_another_coder_is_caught_by_the_checksum() -> None:
    other = reversed_tables(handmade(50, 300))
    with pytest.raises((SymbolMismatchError, PayloadError)):
        unpack_indices(read_file(GOLDEN), coder=other, grids=GRIDS)


def reversed_tables(coder: IndexCoder) -> IndexCoder:
    return IndexCoder(coder.codebooks, coder.frequencies[::-1].copy())


@pytest.fixture(scope="module", params=["vq", "vq2", "fsq", "vqmodel"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of codes with a coder; do not change it: copy it first."""
    folder = save_model(request.param, tmp_path_factory.mktemp(request.param))
    codes = Codec.from_pretrained(folder).codes
    assert codes is not None
    handmade(*codes.sizes).save(folder / ENTROPY_FILE)
    finish(folder)
    return folder


def finish(folder: Path) -> ModelInfo:
    return checkpoint.finalize(
        folder,
        name="codes",
        default_quality=None,
        quality_50_step=None,
        license_name="CC0-1.0",
        summary="Random weights for tests.",
    )


def test_files_come_back(directory: Path, pixels: MakePixels) -> None:
    codec, own = Codec.from_pretrained(directory), Codec.from_pretrained(directory)
    image = pixels(70, 90)
    data = codec.compress(image)
    header = read_file(data).header
    assert codec.info is not None
    assert (header.latent_id, header.coder_id) == (codec.info.latent_id, codec.info.coder_id)
    assert np.array_equal(own.reconstruct(data).pixels, codec.reconstruct(data).pixels)
    repacked = codec.pack(codec.unpack(data))
    assert read_file(repacked).payload == read_file(data).payload


def test_damage_is_a_typed_error(directory: Path, pixels: MakePixels) -> None:
    codec = Codec.from_pretrained(directory)
    data = codec.compress(pixels(40, 48))
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 40):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        with pytest.raises(LatentCodecError):
            codec.reconstruct(bytes(changed))
    for size in range(0, len(data), 7):
        with pytest.raises(LatentCodecError):
            codec.reconstruct(data[:size])


def test_a_coder_of_other_codebooks_is_refused(tmp_path: Path) -> None:
    folder = save_model("vq2", tmp_path)
    handmade(32).save(folder / ENTROPY_FILE)
    finish(folder)
    with pytest.raises(ModelError, match="not those of an autoencoder with 2 codebooks"):
        Codec.from_pretrained(folder)


def test_an_earlier_coder_still_reads(tmp_path: Path, pixels: MakePixels) -> None:
    folder = save_model("vq", tmp_path)
    handmade(32).save(folder / ENTROPY_FILE)
    first = finish(folder).coder_id
    before = Codec.from_pretrained(folder)
    data = before.compress(pixels(40, 48))
    (folder / ENTROPY_FILE).rename(identity.earlier_coder(folder, first))
    reversed_tables(handmade(32)).save(folder / ENTROPY_FILE)
    assert finish(folder).coder_id != first
    after = Codec.from_pretrained(folder)
    assert np.array_equal(after.reconstruct(data).pixels, before.reconstruct(data).pixels)
    other = after.compress(pixels(40, 48))
    assert read_file(other).payload != read_file(data).payload
    assert np.array_equal(after.reconstruct(other).pixels, before.reconstruct(data).pixels)
