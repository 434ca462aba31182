"""Samples of a token prior: seeds, cache, settings, and what they may be asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codec import Codec
from codec.entropy.index_tables import Indices
from codec.errors import LatentCodecError
from codec.images import load
from codec.prior.directory import PriorError, read_prior
from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import new_model
from codec.prior.token_sampling import TokenChoice, sample_tokens, seeded_uniforms
from codec.prior.tokens import TokenPrior, bits_per_pixel, layout_of
from tests.codec.prior.token_priors import open_token_prior, shake, write_token_prior

LAYOUT = TokenLayout((6, 4), ((1, 2), (2, 4)), 2)
LABELS = (0, 1, None, 1, 0)
SEEDS = (3, 4, 5, 4, 2**40)


@pytest.fixture(scope="module")
def model() -> object:
    torch.manual_seed(0)
    return shake(new_model(LAYOUT, width=16, layers=2, heads=2).eval())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_token_prior(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def prior(directory: Path) -> TokenPrior:
    return open_token_prior(directory)


def sampled(model: object, choice: TokenChoice, *, use_cache: bool = True) -> torch.Tensor:
    classes = torch.tensor([LAYOUT.class_token(label) for label in LABELS])
    uniforms = seeded_uniforms(SEEDS, LAYOUT.length)
    return sample_tokens(model, LAYOUT, classes, uniforms, choice, use_cache=use_cache)


def same(first: Indices, second: Indices) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


class TestTokens:
    @pytest.mark.parametrize(
        "choice",
        [TokenChoice(), TokenChoice(guidance=3), TokenChoice(0.7, top_k=3, top_p=0.8, guidance=2)],
    )
    def test_the_cache_changes_nothing(self, model: object, choice: TokenChoice) -> None:
        assert torch.equal(sampled(model, choice), sampled(model, choice, use_cache=False))

    def test_places_get_the_codes_of_their_codebook(self, model: object) -> None:
        tokens = sampled(model, TokenChoice(temperature=50))
        assert int(tokens[:, :2].max()) < 6
        assert 6 <= int(tokens[:, 2:].min()) <= int(tokens[:, 2:].max()) < 10

    def test_the_likeliest_code_alone(self, model: object) -> None:
        tokens = sampled(model, TokenChoice(top_k=1))
        tiny = sampled(model, TokenChoice(temperature=1e-6))
        narrow = sampled(model, TokenChoice(top_p=1e-9))
        classes = torch.tensor([LAYOUT.class_token(label) for label in LABELS])
        with torch.no_grad():
            inputs = torch.cat([classes[:, None], tokens[:, :-1]], dim=1)
            logits = model(inputs).logits  # type: ignore[operator]
        expected = torch.cat(
            [logits[:, :2, :6].argmax(2), 6 + logits[:, 2:, 6:10].argmax(2)], dim=1
        )
        for found in (tokens, tiny, narrow):
            assert torch.equal(found, expected)

    def test_guidance_one_is_none_and_more_is_a_difference_of_logits(self, model: object) -> None:
        assert torch.equal(sampled(model, TokenChoice(guidance=1)), sampled(model, TokenChoice()))
        likeliest = sampled(model, TokenChoice(top_k=1, guidance=2.5))
        null = torch.full((len(LABELS),), LAYOUT.class_token(None))
        classes = torch.tensor([LAYOUT.class_token(label) for label in LABELS])
        with torch.no_grad():
            with_class, without = (
                model(torch.cat([first[:, None], likeliest[:, :-1]], dim=1)).logits  # type: ignore[operator]
                for first in (classes, null)
            )
        mixed = without + 2.5 * (with_class - without)
        expected = torch.cat([mixed[:, :2, :6].argmax(2), 6 + mixed[:, 2:, 6:10].argmax(2)], dim=1)
        assert torch.equal(likeliest, expected)
        assert not torch.equal(likeliest[:2], sampled(model, TokenChoice(top_k=1))[:2])

    def test_codes_are_as_frequent_as_they_are_likely(self, model: object) -> None:
        count = 4000
        classes = torch.full((count,), LAYOUT.class_token(0))
        with torch.no_grad():
            logits = model(classes[:1, None]).logits[0, 0, :6]  # type: ignore[operator]
        layout = TokenLayout((6,), ((1, 1),), 6)  # the first place alone; as many tokens
        uniforms = seeded_uniforms(range(count), 1)
        for choice, scores in (
            (TokenChoice(), logits),
            (TokenChoice(temperature=2), logits / 2),
            (TokenChoice(top_k=2), logits.where(logits >= logits.sort().values[-2], -torch.inf)),
        ):
            tokens = sample_tokens(model, layout, classes, uniforms, choice)
            found = torch.bincount(tokens[:, 0], minlength=6) / count
            np.testing.assert_allclose(found, scores.softmax(0), atol=0.03)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temperature": 0.0}, "found temperature 0, expected a number above 0.*top_k=1"),
            ({"temperature": float("nan")}, "found temperature nan"),
            ({"top_k": 0}, "found top_k 0"),
            ({"top_p": 1.5}, r"found top_p 1\.5, expected a number above 0, at most 1"),
            ({"guidance": 0.5}, r"found guidance 0\.5, expected at least 1, which is none"),
        ],
    )
    def test_settings_out_of_range(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(PriorError, match=message):
            TokenChoice(**settings)  # type: ignore[arg-type]


class TestPrior:
    def test_an_image_follows_from_its_seed_whatever_the_batch(self, prior: TokenPrior) -> None:
        labels, seeds = [0, 1, None, 2, 1, 0, 2], [7, 8, 9, 8, 8, 1, 0]
        settings = {"guidance": 1.5, "top_p": 0.9}
        whole = list(prior.sample_indices(labels, seeds, **settings))  # type: ignore[arg-type]
        for size in (1, 3):
            parts = prior.sample_indices(labels, seeds, batch_size=size, **settings)  # type: ignore[arg-type]
            assert all(map(same, whole, parts))
        assert same(whole[1], whole[4])
        assert not same(whole[1], whole[3])

    def test_samples_are_decoded_codes(self, prior: TokenPrior, directory: Path) -> None:
        steps: list[None] = []
        pixels = list(
            prior.sample([0, 2, 1], [1, 2, 3], batch_size=2, advance=lambda: steps.append(None))
        )
        indices = list(prior.sample_indices([0, 2, 1], [1, 2, 3]))
        assert len(steps) == 2 * prior.layout.length == 2 * 16
        codec = Codec.from_pretrained(directory / "codec", dtype="float32")
        for image, found in zip(pixels, indices, strict=True):
            assert image.shape == (32, 32, 3)
            assert image.dtype == np.uint8
            assert codec.codes is not None
            latents = torch.from_numpy(codec.codes.to_latents(found))[None]
            decoded = codec.decode(codec._scaling.scale(latents))[0].permute(1, 2, 0)
            levels = ((decoded + 1) * 127.5).numpy()
            np.testing.assert_allclose(image, levels, atol=0.51)

    def test_bits_are_those_of_the_codes_that_files_hold(self, prior: TokenPrior) -> None:
        pixels = load(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).pixels
        indices = prior.encode(pixels)
        alone = [prior.bits([indices], [label])[0] for label in (0, 1, None)]
        together = prior.bits([indices] * 3, [0, 1, None], batch_size=2)
        np.testing.assert_allclose(together, alone, rtol=1e-6)
        assert len(set(np.round(together, 3))) == 3
        np.testing.assert_array_equal(
            bits_per_pixel(together, prior.info.size), together / (32 * 32)
        )
        file = prior.codec.compress(pixels)
        latents = prior.codec.unpack(file)
        assert prior.codec.codes is not None
        raw = prior.codec._scaling.unscale(latents)[0].numpy()
        assert same(prior.codec.codes.to_indices(raw), indices)
        with pytest.raises(PriorError, match="found an image of 40x32 pixels, expected 32x32"):
            prior.encode(np.zeros((32, 40, 3), np.uint8))
        assert prior.bits([], []).shape == (0,)

    def test_two_codebooks(self, tmp_path: Path) -> None:
        prior = open_token_prior(write_token_prior(tmp_path, "vq2", ()))
        assert prior.layout.shapes == ((2, 2), (4, 4))
        (indices,) = prior.sample_indices([None], [0])
        assert [grid.shape for grid in indices] == [(2, 2), (4, 4)]
        assert prior.decode(indices).shape == (32, 32, 3)
        assert prior.bits([indices], [None])[0] > 0
        with pytest.raises(PriorError, match="found class 0, expected none"):
            prior.sample_indices([0], [0])
        assert same(indices, next(prior.sample_indices([None], [0], guidance=3)))

    def test_what_it_was_not_trained_for(self, tmp_path: Path) -> None:
        prior = open_token_prior(write_token_prior(tmp_path, has_null_class=False))
        assert len(list(prior.sample_indices([1], [0]))) == 1
        for ask in (
            lambda: prior.sample_indices([1, None], [0, 1]),
            lambda: prior.sample_indices([1], [0], guidance=2),
        ):
            with pytest.raises(PriorError, match="trained with classes alone"):
                ask()

    def test_wrong_use(self, prior: TokenPrior, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(PriorError, match="found 2 classes and 1 seeds"):
            prior.sample_indices([1, 2], [0])
        with pytest.raises(PriorError, match="found batch_size 0"):
            prior.sample_indices([1], [0], batch_size=0)
        with pytest.raises(PriorError, match="found class 3, expected 0 to 2, or none"):
            prior.sample([3], [0])
        with pytest.raises(PriorError, match="found continuous latents in codec tiny"):
            layout_of(Codec.from_pretrained(model_dir), (32, 32), 0)
        with pytest.raises(LatentCodecError, match=r"prior\.json"):
            TokenPrior.from_pretrained(tmp_path)

    def test_the_directory_says_what_it_is(self, directory: Path) -> None:
        info = read_prior(directory)
        assert (info.kind, info.codec, info.size) == ("tokens", "codec", (32, 32))
        assert open_token_prior(directory).has_null_class
