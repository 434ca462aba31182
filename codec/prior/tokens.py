"""TokenPrior: an autoregressive transformer over a codec's codes; it samples and it measures.

The negative log-likelihood of an image's codes is exact, so it is also a rate: what a coder with
these probabilities would need. No such coder is here (files are coded by `codec.entropy`).

Legend: N images, T tokens of an image, H W pixels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import backbone
from codec.device import choose_device, choose_dtype
from codec.entropy.index_tables import Indices
from codec.images import Pixels, pad
from codec.pipeline import Codec
from codec.prior.directory import PriorError, PriorInfo, load_codec, read_prior
from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import NULL_CLASS, load_model, sequence_bits
from codec.prior.token_sampling import TokenChoice, sample_tokens, seeded_uniforms

__all__ = ["TokenPrior", "bits_per_pixel"]


class TokenPrior:
    """A token prior and the codec whose codes it speaks.

    Attributes:
        info: What prior.json says.
        codec: Decodes samples.
        model: transformers' GPT2LMHeadModel, in evaluation mode.
        layout: How codes and classes become tokens.
        device: Where the model runs.
        dtype: What it computes in.
        has_null_class: Whether it was trained on images without their class too.
    """

    def __init__(self, model: Any, info: PriorInfo, codec: Codec, layout: TokenLayout) -> None:
        """Wraps what is at hand; `from_pretrained` is the usual way."""
        self.info = info
        self.codec = codec
        self.model = model
        self.layout = layout
        reference = next(model.parameters())
        self.device: torch.device = reference.device
        self.dtype: torch.dtype = reference.dtype
        self.has_null_class = bool(getattr(model.config, NULL_CLASS, True))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "TokenPrior":
        """Loads a prior that `latent-codec-train export` made, and its codec.

        Args:
            directory: Where it lies.
            device: Where to run; None for CUDA where there is one, else the CPU.
            dtype: What to compute in; None for bfloat16 where the processor has units for it, else
                float32. Likelihoods are those of this dtype.

        Raises:
            PriorError: It is missing, damaged or of another kind.
            MissingExtraError: transformers is not installed.
            LatentCodecError: Its codec is not at hand or damaged.
        """
        info = read_prior(directory)
        if info.kind != "tokens":
            raise PriorError(
                f"found a prior of kind {info.kind} in {directory}, expected one of tokens"
            )
        place = choose_device(device)
        codec = load_codec(info, place, dtype)
        layout = layout_of(codec, info.size, len(info.class_names))
        model = load_model(Path(directory), layout, place, choose_dtype(place, dtype))
        return cls(model, info, codec, layout)

    def sample(
        self,
        labels: Sequence[int | None],
        seeds: Sequence[int],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        batch_size: int = 8,
        use_cache: bool = True,
        advance: Callable[[], None] = lambda: None,
    ) -> Iterator[Pixels]:
        """Samples images, in order; arguments are those of `sample_indices`.

        Yields:
            uint8 (H, W, 3) of the size that the prior was trained on.
        """
        found = self.sample_indices(
            labels,
            seeds,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
            batch_size=batch_size,
            use_cache=use_cache,
            advance=advance,
        )
        return map(self.decode, found)

    def sample_indices(
        self,
        labels: Sequence[int | None],
        seeds: Sequence[int],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        batch_size: int = 8,
        use_cache: bool = True,
        advance: Callable[[], None] = lambda: None,
    ) -> Iterator[Indices]:
        """Samples the codes of images, in order.

        An image follows from its seed, its class and the settings: in float32 the batch size does
        not matter, but where two codes are as good as equally likely.

        Args:
            labels: Class of each image; None for any.
            seeds: Of each image.
            temperature: See `TokenChoice`.
            top_k: Likewise.
            top_p: Likewise.
            guidance: Likewise; without any class it changes nothing.
            batch_size: Images that are sampled together.
            use_cache: See `sample_tokens`.
            advance: Is called after each token of each batch.

        Yields:
            int32 indices of each codebook, coarse to fine.

        Raises:
            PriorError: A class is unknown, a setting out of range, or the prior was trained with
                classes alone and an image without one, or guidance, was asked for.
        """
        choice = TokenChoice(temperature, top_k, top_p, guidance)
        self._check(labels, seeds, choice, batch_size)
        if all(label is None for label in labels):  # there is nothing to guide to
            choice = replace(choice, guidance=1.0)
        return self._batches(labels, seeds, choice, batch_size, use_cache, advance)

    def decode(self, indices: Indices) -> Pixels:
        """Decodes indices to pixels, uint8 (H, W, 3)."""
        assert self.codec.codes is not None
        raw_latents = self.codec.codes.to_latents(indices)
        pixels = backbone.decode_pixels(self.codec.autoencoder, raw_latents)
        width, height = self.info.size
        return np.ascontiguousarray(pixels[:height, :width])

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Indices:
        """Encodes pixels, uint8 (H, W, 3) of the prior's size, to indices, as files hold them.

        Raises:
            PriorError: They have another size.
        """
        height, width = pixels.shape[:2]
        if (width, height) != self.info.size:
            raise PriorError(
                f"found an image of {width}x{height} pixels, expected "
                f"{self.info.size[0]}x{self.info.size[1]}: cut it first"
            )
        codec = self.codec
        assert codec.codes is not None
        return backbone.encode_indices(codec.autoencoder, codec.codes, pad(pixels, codec.multiple))

    @torch.no_grad()
    def bits(
        self,
        indices: Sequence[Indices],
        labels: Sequence[int | None],
        *,
        batch_size: int = 8,
    ) -> NDArray[np.float64]:
        """Returns the exact negative log-likelihood of each image's codes, in bits (N,).

        Args:
            indices: Of each image, as `encode` gives them.
            labels: Class of each; None for the null class.
            batch_size: Images that are measured together.

        Raises:
            PriorError: Indices or classes are not this prior's.
        """
        assert len(indices) == len(labels)
        self._check_classes(labels)
        found = []
        for start in range(0, len(indices), batch_size):
            part = slice(start, start + batch_size)
            rows = np.stack([self.layout.to_tokens(image) for image in indices[part]])
            tokens = torch.from_numpy(rows).to(self.device)
            bits = sequence_bits(
                self.model, self.layout, tokens, self._class_tokens(labels[part]), torch.float64
            )
            found.append(bits.sum(dim=1).cpu().numpy())
        return np.concatenate(found) if found else np.empty(0)

    def _batches(
        self,
        labels: Sequence[int | None],
        seeds: Sequence[int],
        choice: TokenChoice,
        batch_size: int,
        use_cache: bool,
        advance: Callable[[], None],
    ) -> Iterator[Indices]:
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            tokens = sample_tokens(
                self.model,
                self.layout,
                self._class_tokens(labels[part]),
                seeded_uniforms(seeds[part], self.layout.length),
                choice,
                use_cache=use_cache,
                advance=advance,
            )
            for row in tokens.cpu().numpy():
                yield self.layout.to_indices(row)

    def _class_tokens(self, labels: Sequence[int | None]) -> torch.Tensor:
        tokens = [self.layout.class_token(label) for label in labels]
        return torch.tensor(tokens, dtype=torch.int64, device=self.device)

    def _check(
        self,
        labels: Sequence[int | None],
        seeds: Sequence[int],
        choice: TokenChoice,
        batch_size: int,
    ) -> None:
        if len(labels) != len(seeds):
            raise PriorError(
                f"found {len(labels)} classes and {len(seeds)} seeds, expected one of each an image"
            )
        if batch_size < 1:
            raise PriorError(f"found batch_size {batch_size}, expected at least 1")
        self._check_classes(labels)
        if choice.is_guided and not self.has_null_class:
            raise PriorError(
                f"found guidance {choice.guidance:g} for {self.info.name}, expected 1: it was "
                "trained with classes alone"
            )

    def _check_classes(self, labels: Sequence[int | None]) -> None:
        for label in labels:
            self.layout.class_token(label)
        if not self.has_null_class and any(label is None for label in labels):
            raise PriorError(
                f"found an image without a class for {self.info.name}, which was trained with "
                f"classes alone: expected one of {', '.join(self.info.class_names)}"
            )


def layout_of(codec: Codec, size: tuple[int, int], num_classes: int) -> TokenLayout:
    """Returns how the codes of a codec become tokens.

    Args:
        codec: Any; one with continuous latents is refused.
        size: (width, height) of images in pixels.
        num_classes: Without the null class.

    Raises:
        PriorError: The latents are continuous, or an image has too many codes.
    """
    if codec.codes is None:
        raise PriorError(
            f"found continuous latents in codec {codec.name}, expected codes: a token prior speaks "
            "those of vq, fsq or vq2 alone, a diffusion prior continuous ones"
        )
    return TokenLayout.of(codec.codes, size, codec.factor, codec.multiple, num_classes)


def bits_per_pixel(bits: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Returns the bits (N,) of images as rates, over the width and height in pixels."""
    return bits / (size[0] * size[1])
