"""Sequences of tokens and their likelihoods."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.console import MissingExtraError
from codec.errors import LatentCodecError
from codec.prior.directory import PriorError
from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import load_model, new_model, save_model, sequence_bits
from tests.codec.prior.token_priors import shake

LAYOUT = TokenLayout(sizes=(5, 3), shapes=((1, 2), (2, 4)), num_classes=4)
CPU = torch.device("cpu")


def some_tokens(layout: TokenLayout, count: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        grids = tuple(
            random.integers(0, size, shape, np.int32)
            for size, shape in zip(layout.sizes, layout.shapes, strict=True)
        )
        rows.append(layout.to_tokens(grids))
    return torch.from_numpy(np.stack(rows))


class TestLayout:
    def test_codes_come_coarse_to_fine_row_by_row(self) -> None:
        top = np.array([[4, 0]], np.int32)
        bottom = np.array([[0, 1, 2, 0], [2, 2, 1, 0]], np.int32)
        tokens = LAYOUT.to_tokens((top, bottom))
        assert tokens.tolist() == [4, 0, 5, 6, 7, 5, 7, 7, 6, 5]
        for one, other in zip(LAYOUT.to_indices(tokens), (top, bottom), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.int32

    def test_classes_have_tokens_behind_the_codes(self) -> None:
        assert [LAYOUT.class_token(label) for label in (0, 3, None, -1)] == [8, 11, 12, 12]
        assert (LAYOUT.vocabulary, LAYOUT.length) == (13, 10)
        assert TokenLayout((5,), ((2, 2),), 0).class_token(None) == 5

    def test_what_is_no_code_or_class_is_refused(self) -> None:
        top, bottom = np.zeros((1, 2), np.int32), np.zeros((2, 4), np.int32)
        with pytest.raises(PriorError, match="found class 4, expected 0 to 3, or none"):
            LAYOUT.class_token(4)
        with pytest.raises(PriorError, match=r"found indices of shapes \[\(1, 2\)\]"):
            LAYOUT.to_tokens((top,))
        with pytest.raises(PriorError, match="found indices from 0 to 3, expected 0 to 2"):
            LAYOUT.to_tokens((top, bottom + 3 * (np.arange(4) == 1).astype(np.int32)))


class TestLikelihood:
    def test_a_uniform_model_costs_the_logarithm_of_the_codes(self) -> None:
        model = new_model(LAYOUT, width=8, layers=1, heads=1).eval()
        torch.nn.init.zeros_(model.lm_head.weight)
        tokens = some_tokens(LAYOUT, 3)
        bits = sequence_bits(
            model, LAYOUT, tokens, torch.full((3,), LAYOUT.class_token(1)), torch.float64
        )
        expected = [np.log2(5)] * 2 + [np.log2(3)] * 8
        np.testing.assert_allclose(bits.detach(), [expected] * 3, rtol=1e-15)
        power = TokenLayout((1024,), ((4, 4),), 0)
        model = new_model(power, width=8, layers=1, heads=1).eval()
        torch.nn.init.zeros_(model.lm_head.weight)
        nothing = torch.tensor([power.class_token(None)])
        bits = sequence_bits(model, power, some_tokens(power, 1), nothing, torch.float64)
        assert bits.unique().tolist() == [10.0]

    def test_probabilities_of_all_sequences_add_up_to_one(self) -> None:
        layout = TokenLayout((3, 2), ((1, 1), (2, 2)), 2)
        model = shake(new_model(layout, width=8, layers=2, heads=2).eval())
        codes = itertools.product(range(3), *[range(2)] * 4)
        rows = [layout.to_tokens((np.array([[a]]), np.array([b[:2], b[2:]]))) for a, *b in codes]
        tokens = torch.from_numpy(np.stack(rows))
        for label in (0, 1, None):
            classes = torch.full((len(tokens),), layout.class_token(label))
            with torch.no_grad():
                bits = sequence_bits(model, layout, tokens, classes, torch.float64).sum(1)
            assert float(torch.exp2(-bits).sum()) == pytest.approx(1, abs=1e-6)

    def test_a_token_costs_the_same_whatever_comes_behind_it(self) -> None:
        model = shake(new_model(LAYOUT, width=8, layers=2, heads=2).eval())
        tokens = some_tokens(LAYOUT, 2)
        tokens[1, :6] = tokens[0, :6]
        classes = torch.full((2,), LAYOUT.class_token(0))
        with torch.no_grad():
            bits = sequence_bits(model, LAYOUT, tokens, classes, torch.float64)
            other = sequence_bits(model, LAYOUT, tokens, classes + 1, torch.float64)
        torch.testing.assert_close(bits[0, :6], bits[1, :6])
        assert not torch.allclose(bits[0, 6:], bits[1, 6:])
        assert not torch.allclose(bits, other)

    def test_the_gradient_reaches_every_parameter(self) -> None:
        model = shake(new_model(LAYOUT, width=8, layers=2, heads=2))
        tokens = some_tokens(LAYOUT, 4)
        classes = torch.tensor([LAYOUT.class_token(label) for label in (0, 1, 2, None)])
        sequence_bits(model, LAYOUT, tokens, classes, torch.float32).sum().backward()
        untouched = [
            name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
        ]
        assert untouched == []


class TestFiles:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        torch.manual_seed(0)
        save_model(new_model(LAYOUT, width=8, layers=1, heads=2), tmp_path / "model")
        return tmp_path / "model"

    def test_a_model_comes_back(self, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
        torch.manual_seed(0)
        model = new_model(LAYOUT, width=8, layers=1, heads=2).eval()
        loaded = load_model(directory, LAYOUT, CPU, torch.float32)
        assert not loaded.training
        tokens, classes = some_tokens(LAYOUT, 2), torch.full((2,), LAYOUT.class_token(2))
        with torch.no_grad():
            found, expected = (
                sequence_bits(one, LAYOUT, tokens, classes, torch.float64)
                for one in (loaded, model)
            )
        assert torch.equal(found, expected)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("model_type", "llama", "found model_type 'llama', expected 'gpt2'"),
            ("vocab_size", 14, "found vocab_size 14, expected 13"),
            ("n_positions", 11, "found n_positions 11, expected 10"),
            ("n_layer", 10**9, "found n_layer 1000000000, expected 1 to 256"),
            ("n_layer", 2, "do not fit"),
            ("n_embd", 16, "n_embd|do not fit|size mismatch|ignore_mismatched_sizes"),
        ],
    )
    def test_another_model_is_refused(
        self, directory: Path, key: str, value: object, message: str
    ) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        with pytest.raises(LatentCodecError, match=message):
            load_model(directory, LAYOUT, CPU, torch.float32)

    def test_damage_is_refused(self, directory: Path, tmp_path: Path) -> None:
        weights = directory / "model.safetensors"
        data = weights.read_bytes()
        for damaged in (data[:-9], data[:20], b""):
            weights.write_bytes(damaged)
            with pytest.raises(PriorError, match="damaged"):
                load_model(directory, LAYOUT, CPU, torch.float32)
        weights.unlink()
        with pytest.raises(PriorError, match=r"found no model\.safetensors"):
            load_model(directory, LAYOUT, CPU, torch.float32)
        with pytest.raises(PriorError, match=r"found no config\.json"):
            load_model(tmp_path, LAYOUT, CPU, torch.float32)
        shutil.rmtree(directory)

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        with pytest.raises(MissingExtraError, match=r"'transformers'.*latent-codec\[prior\]"):
            new_model(LAYOUT, width=8, layers=1, heads=1)
