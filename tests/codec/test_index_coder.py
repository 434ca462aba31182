"""The coder of indices: exact, the same everywhere, alone or in company."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec.entropy import PayloadError, SymbolsError, TablesError
from codec.entropy.fit_indices import fit_frequencies, fit_tables
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_network import NUM_TABLES, logistic_frequencies
from codec.entropy.index_tree import descend, leaf_paths, order_codes
from codec.entropy.index_walk import Step
from codec.packer import load_any_coder
from codec.packing import IndicesCoder
from tests.codec.index_coders import golden_indices, handmade, some_indices

SIZES = (50, 300)


@pytest.fixture(scope="module")
def coder() -> IndexCoder:
    return handmade(*SIZES)


def shapes_of(indices: tuple[NDArray[np.int32], ...]) -> list[tuple[int, ...]]:
    return [grid.shape for grid in indices]


def assert_equal(found: tuple[NDArray[np.int32], ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.int32
        np.testing.assert_array_equal(one, other)


class TestRoundTrip:
    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.sampled_from([2, 3, 8, 37, 256, 1000]), min_size=1, max_size=3),
        shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_indices(self, sizes: list[int], shape: tuple[int, int], seed: int) -> None:
        coder, indices = handmade(*sizes), some_indices(tuple(sizes), shape, seed)
        assert_equal(coder.decode(coder.encode(indices), shapes_of(indices)), indices)

    def test_the_largest_codebook(self) -> None:
        coder, indices = handmade(2**16), some_indices((2**16,), (9, 8))
        indices[0][0, :2] = 0, 2**16 - 1
        assert coder.codebook_sizes == (65536,)
        assert_equal(coder.decode(coder.encode(indices), [(9, 8)]), indices)

    @pytest.mark.parametrize("index", [0, 299])
    def test_constant_indices(self, index: int) -> None:
        indices = (np.full((33, 17), index, np.int32),)
        coder = handmade(300)
        assert_equal(coder.decode(coder.encode(indices), [(33, 17)]), indices)

    def test_the_estimate_is_close_to_the_bytes(self, coder: IndexCoder) -> None:
        indices = some_indices(SIZES, (16, 16))
        found = 8 * len(coder.encode(indices))
        assert coder.estimate_bits(indices) == pytest.approx(found, rel=0.002, abs=16)

    def test_it_is_what_files_take(self, coder: IndexCoder) -> None:
        assert isinstance(coder, IndicesCoder)
        assert coder.codebook_sizes == SIZES


class TestTree:
    @pytest.mark.parametrize("size", [2, 3, 7, 64, 1000])
    def test_paths_lead_to_their_leaves(self, size: int) -> None:
        paths, leaves = leaf_paths(size), np.arange(size)
        assert np.array_equal(np.unique(paths.nodes[paths.is_step]), np.arange(size - 1))
        lengths = paths.is_step.sum(axis=1)
        assert lengths.max() - lengths.min() <= 1
        found = descend(size, size, lambda nodes, places: leaves[places] > nodes)
        assert np.array_equal(found, leaves)

    def test_near_codes_stand_together(self) -> None:
        random = np.random.default_rng(0)
        line = np.linspace(-5, 5, 64)
        vectors = np.stack([line, 0.01 * random.normal(size=64)], axis=1)
        order = random.permutation(64)
        found = order_codes(vectors[order], np.ones(64))
        along = vectors[order][found, 0]
        assert np.array_equal(along, np.sort(along)) or np.array_equal(along, np.sort(along)[::-1])


class TestFit:
    def test_frequency_tables_cost_the_order_0_entropy(self) -> None:
        random = np.random.default_rng(1)
        shares = random.dirichlet(np.full(40, 0.3))
        images = [(random.choice(40, (64, 64), p=shares).astype(np.int32),) for _ in range(8)]
        coder = fit_frequencies(images, [random.normal(size=(40, 3))])
        counts = np.bincount(np.concatenate([image[0].ravel() for image in images]), minlength=40)
        seen = counts[counts > 0]
        entropy = -(seen * np.log2(seen / seen.sum())).sum()
        assert sum(coder.estimate_bits(image) for image in images) == pytest.approx(
            entropy, rel=0.002
        )

    def test_codes_that_never_occurred_are_coded_all_the_same(self) -> None:
        images = [(np.zeros((8, 8), np.int32), np.zeros((16, 16), np.int32))]
        coder = fit_frequencies(images, [np.eye(9), np.ones((5, 2))])
        indices = some_indices((9, 5), (3, 4))
        assert_equal(coder.decode(coder.encode(indices), shapes_of(indices)), indices)

    def test_counted_tables_cost_less(self, coder: IndexCoder) -> None:
        images = [some_indices(SIZES, (64, 64), seed) for seed in range(3)]
        fitted = fit_tables(coder, images)
        before, after = (
            sum(one.estimate_bits(image) for image in images) for one in (coder, fitted)
        )
        assert after < before


class TestCompany:
    def test_bytes_do_not_depend_on_the_batch(self, coder: IndexCoder) -> None:
        images = [some_indices(SIZES, (5, 6), seed) for seed in range(4)]
        together = coder.encode_batch(images)
        assert together == [coder.encode(image) for image in images]
        for image, found in zip(
            images, coder.decode_batch(together, [(5, 6), (10, 12)]), strict=True
        ):
            assert_equal(found, image)

    def test_shapes_in_a_batch_must_be_alike(self, coder: IndexCoder) -> None:
        images = [some_indices(SIZES, shape) for shape in ((2, 2), (2, 3))]
        with pytest.raises(SymbolsError, match="one shape"):
            coder.encode_batch(images)

    def test_one_damaged_payload_is_refused(self, coder: IndexCoder) -> None:
        good = coder.encode(some_indices(SIZES, (32, 32)))
        with pytest.raises(PayloadError):
            coder.decode_batch([good, b""], [(32, 32), (64, 64)])


class TestSame:
    """The same bytes whatever runs beside, around or before."""

    GOLDEN = (
        "1b66070f4658ffeb9d3a1a760710227e2531193630c592a75e6a5f5fb9689d30f37a3fdd0ff52d19ff868202"
        "dae2f286c3fb80d56cb18de32af79e886a2481c3a2589cb41608b8fabec6dddfeccf13b4c8fd3a002cc7eae4"
        "7ee42ff14860f42b5bbc24fab8c80f0a672bf6ee6f1095ec7e0f39bd12c98345ec8126adbcd3aedcbca31130"
        "cc28271ffa90b4c6b9ce06945ccfe7b3fa1ff8f7a29a95ecdc2a61a6053abe038a70cce64ba2c6cdae3885a9"
        "a5a80170e185974da6ca3fa8ca0dcd74be7fdb83c4e0a0e4aeba4df8184d21066fc846fece8d4ad6c83c23ea"
        "9686"
    )
    SCRIPT = """
import hashlib, sys
import numpy as np, torch
from codec.packer import load_any_coder
torch.set_num_threads(2)
torch.set_default_dtype(torch.bfloat16)
torch.use_deterministic_algorithms(True)
torch.backends.mkldnn.set_flags(False)
coder = load_any_coder(sys.argv[1])
grids = tuple(np.load(sys.argv[2]).values())
payload = coder.encode(grids)
with torch.autocast("cpu", torch.bfloat16):
    found = coder.decode(payload, [grid.shape for grid in grids])
assert all(map(np.array_equal, found, grids))
print(hashlib.sha256(payload).hexdigest())
"""

    def test_another_process_gives_the_same_bytes(self, coder: IndexCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "entropy.safetensors")
        indices = some_indices(SIZES, (20, 25), 7)
        np.savez(tmp_path / "indices.npz", *indices)
        names = [str(tmp_path / name) for name in ("entropy.safetensors", "indices.npz")]
        result = subprocess.run(
            [sys.executable, "-c", self.SCRIPT, *names],
            env={**os.environ, "OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        expected = hashlib.sha256(coder.encode(indices)).hexdigest()
        assert result.stdout.split() == [expected], result.stderr

    def test_tables_chosen_are_equal_under_any_number_of_threads(self, coder: IndexCoder) -> None:
        images = [some_indices(SIZES, (20, 25), seed) for seed in (8, 9)]
        known = coder.leaves_in_order(images)
        before, chosen = torch.get_num_threads(), []

        def collect(step: Step) -> NDArray[np.bool_]:
            chosen[-1].append(step.tables)
            return step.answers(known)

        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                chosen.append([])
                coder.walk([(20, 25), (40, 50)], 2, collect)
        finally:
            torch.set_num_threads(before)
        for others in chosen[1:]:
            for first, other in zip(chosen[0], others, strict=True):
                np.testing.assert_array_equal(first, other)

    def test_golden_payload(self) -> None:
        assert handmade(*SIZES).encode(golden_indices()).hex() == self.GOLDEN

    def test_the_logistic_tables_are_pinned(self) -> None:
        frequencies = logistic_frequencies()
        assert (frequencies + frequencies[::-1] == 65536).all()
        assert frequencies[[0, 88, 175, 176, 351]].tolist() == [1, 275, 32256, 33280, 65535]


class TestGarbage:
    SHAPES = ((10, 10), (20, 20))

    @settings(max_examples=40, deadline=None)
    @given(payload=st.binary(max_size=900))
    def test_any_bytes(self, coder: IndexCoder, payload: bytes) -> None:
        try:
            indices = coder.decode(payload, self.SHAPES)
        except PayloadError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert tuple(shapes_of(indices)) == self.SHAPES
            for grid, size in zip(indices, SIZES, strict=True):
                assert 0 <= grid.min() <= grid.max() < size

    def test_few_bytes_cannot_claim_a_huge_image(self, coder: IndexCoder) -> None:
        tracemalloc.start()
        with pytest.raises(PayloadError, match="4 bytes was found for 335544320 symbols"):
            coder.decode(b"abcd", [(1 << 13, 1 << 13), (1 << 14, 1 << 14)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda top, bottom: (top, bottom.astype(np.int64)), "int64 from"),
            (lambda top, bottom: (top, bottom + np.int32(290)), "from 0 to 299"),
            (lambda top, bottom: (top - np.int32(50), bottom), "from 0 to 49"),
            (lambda top, bottom: (top,), "2 grids of rows"),
            (lambda top, bottom: (top, bottom[:-1]), "twice"),
            (lambda top, bottom: (top[:0], bottom[:0]), "2 grids of rows"),
            (lambda top, bottom: (top.ravel(), bottom.ravel()), "2 grids of rows"),
            (lambda top, bottom: (), "2 grids of rows"),
        ],
    )
    def test_wrong_indices_are_refused(self, coder: IndexCoder, change: Any, message: str) -> None:
        with pytest.raises(SymbolsError, match=message):
            coder.encode(change(*some_indices(SIZES, (4, 4))))

    @pytest.mark.parametrize("shapes", [[(4, 4)], [(4, 4), (4, 4)], [(0, 4), (0, 8)], []])
    def test_wrong_shapes_are_refused(self, coder: IndexCoder, shapes: Any) -> None:
        with pytest.raises(SymbolsError, match="twice"):
            coder.decode(bytes(100), shapes)


class TestFile:
    def changed(self, folder: Path, **tensors: NDArray[Any] | None) -> Path:
        path = folder / "entropy.safetensors"
        handmade(5, 8).save(path)
        content = {**safetensors.numpy.load_file(path), **tensors}
        kept = {name: tensor for name, tensor in content.items() if tensor is not None}
        safetensors.numpy.save_file(kept, path, {"latent_codec_entropy": "indices-1"})
        return path

    def test_save_and_load_are_identical(self, coder: IndexCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        loaded = load_any_coder(tmp_path / "a")
        loaded.save(tmp_path / "b")
        assert isinstance(loaded, IndexCoder)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        indices = some_indices(SIZES, (4, 5))
        assert loaded.encode(indices) == coder.encode(indices)

    def test_only_integers_are_stored(self, coder: IndexCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        kinds = {t.dtype.kind for t in safetensors.numpy.load_file(tmp_path / "a").values()}
        assert kinds <= {"i", "u"}

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("frequencies", np.zeros(NUM_TABLES, np.uint16), "from 1 to 65535"),
            ("frequencies", np.ones(9, np.uint16), "352"),
            ("frequencies", None, "integer types"),
            ("1.codes", np.zeros(8, np.uint16), "each code once"),
            ("1.codes", np.arange(7, dtype=np.uint16), "codebook 1"),
            ("0.codes", None, "integer types"),
            ("1.values", np.full((8, 3), 4096, np.int16), "4095"),
            ("0.values", np.zeros((5, 4), np.int16), "codebook 0"),
            ("0.nodes", np.zeros((4, 6), np.int16), "codebook 0"),
            ("0.nodes", np.zeros((4, 5), np.int64), "integer types"),
            ("1.edge.first", np.zeros((6, 36), np.int16), "codebook 1"),
            ("1.root.second", np.zeros((5, 7), np.int16), "codebook 1"),
            ("0.node_bias", np.full(4, 2**31 - 1, np.int32), "2\\*\\*31"),
            ("0.node_bias", np.full(4, -(2**31), np.int32), "2\\*\\*31"),
            ("1.edge.first", np.full((6, 63), 32767, np.int16), "2\\*\\*3"),
            ("1.diagonal.second_bias", np.full((5, 1), 2**31 - 1, np.int32), "2\\*\\*31"),
            ("2.codes", np.zeros(8, np.uint16), "integer types"),
        ],
    )
    def test_malformed_tensors(
        self, tmp_path: Path, name: str, tensor: NDArray[Any] | None, message: str
    ) -> None:
        with pytest.raises(TablesError, match=message):
            load_any_coder(self.changed(tmp_path, **{name: tensor}))

    def test_unknown_version(self, tmp_path: Path) -> None:
        safetensors.numpy.save_file(
            {"a": np.zeros(1)}, tmp_path / "a", {"latent_codec_entropy": "indices-2"}
        )
        with pytest.raises(TablesError, match="indices-2"):
            load_any_coder(tmp_path / "a")
