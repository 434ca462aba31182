"""Held-out figures while training: distortion, rate, health of the latents, likelihood bounds.

Every process measures its share of the images; what was added up is merged, the same on all, and
does not depend on how many processes there are.

Shapes: B batch, C latent channels, h w latent grid, S side of an image.
"""

import math
from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from codec.images import Pixels
from eval.latents.codebook import CodebookMeter
from eval.latents.entropy import order0_bits
from eval.latents.pictures import interpolation_strip, reconstruction_grid, to_pixels
from eval.latents.posterior import KL_EDGES, PosteriorMeter, active_units
from eval.latents.statistics import StreamingStatistics
from train.bounds import is_bound, measure_bounds
from train.held_out import HeldOut, Part, load_held_out
from train.perceptual import lpips_at_hand
from train.sections import TrainConfig

FALLBACK_STEP = 0.4
PICTURES = 8


class Encoded(NamedTuple):
    """A batch as the decoder gets it, and where that came from.

    Attributes:
        quantised: (B, C, h, w) what is decoded.
        latents: (B, C, h, w) before they were rounded; codes of a codebook as they are.
        posterior: mean and log-variance (B, C, h, w), or None.
        symbols: (B, C, h, w) the rounded latents in steps, or None.
        indices: of each codebook, coarse to fine, or None.
    """

    quantised: Tensor
    latents: Tensor
    posterior: tuple[Tensor, Tensor] | None = None
    symbols: Tensor | None = None
    indices: tuple[Tensor, ...] | None = None


class Meters:
    """What one process has added up over its share."""

    def __init__(self, channels: int, codebooks: tuple[int, ...], set_name: str) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)  # one an image
        self.latents = StreamingStatistics(channels)
        self.posterior = PosteriorMeter(channels)
        self.codebooks = CodebookMeter(codebooks, set_name)

    def merge(self, other: "Meters") -> None:
        """Add another process's share."""
        for name, values in other.values.items():
            self.values[name] += values
        self.latents.merge(other.latents)
        self.posterior.merge(other.posterior)
        self.codebooks.merge(other.codebooks)


class Validation:
    """Measures a network on held-out images, as 8-bit pixels.

    Args:
        held_out: the images.
        step: quantiser step applied to raw latents that are not codes already.
        perceptual: LPIPS, or None to leave it out.
        with_bounds: report bounds of the likelihood; the network needs a Gaussian posterior.

    Attributes:
        details: what the last `measure` found beside its figures, as in `health_details`; the
            same on every process, and empty before.
    """

    def __init__(
        self,
        held_out: HeldOut,
        step: float,
        perceptual: nn.Module | None,
        *,
        with_bounds: bool = False,
    ) -> None:
        self.held_out = held_out
        self.step = step
        self.perceptual = perceptual
        self.with_bounds = with_bounds
        self.details: dict[str, Any] = {}

    @torch.no_grad()
    def measure(self, model: Any, accelerator: Accelerator) -> dict[str, float]:
        """Figures by logged name; call it on every process, with the model in evaluation mode.

        From quantised latents: `val/psnr` in dB and `val/lpips_<net>`, means over images;
        `val/rate_bpp`: order-0 entropy in bits a pixel, of each image's rounded latents (none of
        single vectors, in which nothing repeats) or of the
        whole set's codes, which at a fixed length take `val/raw_rate_bpp`. `health/...` as in
        `health_figures`. Under `with_bounds` also `val/elbo_bpd` and `val/iwae_bpd`, in bits per
        dimension, and `val/likelihood_scale` in 8-bit levels.

        Args:
            model: LatentAutoencoder, or another diffusers autoencoder for images.
            accelerator: of the run.
        """
        channels, codebooks = model.config["latent_channels"], codebook_sizes(model)
        if self.perceptual is not None:
            self.perceptual.to(accelerator.device)
        meters = Meters(channels, codebooks, self.held_out.name)
        for part in self.held_out.shares(model, accelerator):
            with accelerator.autocast():
                encoded = self._encode(model, part)
                output = model.decode(encoded.quantised, **part.labels).sample.float()
            self._add_latents(meters, encoded)
            self._add_images(meters, part, output)
        merged, *others = gather_object([meters])
        for other in others:
            merged.merge(other)
        self.details = health_details(merged)
        figures = {name: math.fsum(values) / len(values) for name, values in merged.values.items()}
        figures |= self._rate_of_codes(merged.codebooks) | health_figures(merged)
        if self.with_bounds:
            bounds = measure_bounds(model, self.held_out, accelerator)
            figures["val/elbo_bpd"] = bounds.elbo_bits_per_dim
            figures["val/iwae_bpd"] = bounds.iwae_bits_per_dim
            figures["val/likelihood_scale"] = bounds.scale
        return figures

    @torch.no_grad()
    def pictures(self, model: Any, accelerator: Accelerator) -> dict[str, Pixels]:
        """uint8 (H, W, 3): "reconstructions", and "interpolation" if there are two images.

        Drawn by the main process; the others get nothing. Where there are labels, the way leads
        between images of one class, if there are two, and has that of the first.
        """
        if not accelerator.is_main_process:
            return {}
        numbers = np.linspace(0, len(self.held_out) - 1, min(PICTURES, len(self.held_out)))
        part = self.held_out.part(numbers.round().astype(int).tolist(), model, accelerator.device)
        with accelerator.autocast():
            output = model.decode(self._encode(model, part).quantised, **part.labels).sample
        originals = list(part.levels.permute(0, 2, 3, 1).cpu().numpy())
        pictures = {"reconstructions": reconstruction_grid(originals, list(to_pixels(output)))}
        if len(self.held_out) > 1:
            pictures["interpolation"] = self._interpolation(model, accelerator)
        return pictures

    def _interpolation(self, model: Any, accelerator: Accelerator) -> Pixels:
        known = self.held_out.labels
        alike = (known == known[0]).nonzero().flatten().tolist()
        last = alike[-1] if len(alike) > 1 else len(known) - 1
        part = self.held_out.part([0, last], model, accelerator.device)
        labels = {name: label[:1].expand(PICTURES) for name, label in part.labels.items()}
        with accelerator.autocast():
            first, second = self._encode(model, part).quantised
            decode = partial(_decode, model, labels)
            return interpolation_strip(decode, first, second, PICTURES)

    def _encode(self, model: Any, part: Part) -> Encoded:
        output = model.encode(part.x, **part.labels)
        indices = getattr(output, "indices", None)
        if indices is not None:
            latents = output.latents.float()
            return Encoded(latents, latents, indices=tuple(indices))
        posterior = None
        if hasattr(output, "latent_dist"):
            posterior = output.latent_dist.mean.float(), output.latent_dist.logvar.float()
        latents = output.latents.float() if posterior is None else posterior[0]
        symbols = torch.round(latents / self.step)
        return Encoded(symbols * self.step, latents, posterior, symbols)

    def _add_latents(self, meters: Meters, encoded: Encoded) -> None:
        for image in encoded.latents.cpu().numpy():
            meters.latents.update(image)
        if encoded.posterior is not None:
            meters.posterior.update(*encoded.posterior)
        if encoded.indices is not None:
            meters.codebooks.update(encoded.indices)
        if encoded.symbols is not None and encoded.symbols[0, 0].numel() > 1:
            bits = [order0_bits(image) for image in encoded.symbols.cpu().numpy()]
            rates = [value / self.held_out.pixels_an_image for value in bits]
            meters.values["val/rate_bpp"] += rates

    def _add_images(self, meters: Meters, part: Part, output: Tensor) -> None:
        levels = torch.round((output.clamp(-1, 1) + 1) * 127.5)
        error = (levels - part.levels).square().mean((1, 2, 3))
        meters.values["val/psnr"] += (10 * torch.log10(255**2 / error)).tolist()
        if self.perceptual is not None:
            name = f"val/lpips_{getattr(self.perceptual, 'net_name', 'unknown')}"
            meters.values[name] += self.perceptual(levels / 127.5 - 1, part.x).tolist()

    def _rate_of_codes(self, codebooks: CodebookMeter) -> dict[str, float]:
        books = codebooks.finish()
        if not books:
            return {}
        pixels = len(self.held_out) * self.held_out.pixels_an_image
        return {
            "val/rate_bpp": sum(book.count * book.entropy_bits for book in books) / pixels,
            "val/raw_rate_bpp": sum(book.count * math.log2(book.size) for book in books) / pixels,
        }


def health_figures(meters: Meters) -> dict[str, float]:
    """How well the latents are used, by logged name.

    `health/latent_std` over all channels together, `health/latent_mean_abs` the mean absolute
    channel mean, `health/latent_correlation` the largest between two channels. Of a Gaussian
    posterior `health/kl_bits` an element, its least and greatest channel, and the share of
    `health/active_units`. Of each codebook (`_top` and `_bottom` if there are two) usage,
    perplexity, and how many indices were counted for each of its codes.
    """
    latents = meters.latents.finish()
    figures = {
        "health/latent_std": 1 / latents.scaling_factor,
        "health/latent_mean_abs": float(np.abs(latents.mean).mean()),
        "health/latent_correlation": latents.largest_correlation,
    }
    if meters.posterior.count:
        rate = meters.posterior.finish()
        figures |= {
            "health/kl_bits": rate.mean_bits,
            "health/kl_bits_min": min(rate.channel_bits),
            "health/kl_bits_max": max(rate.channel_bits),
            "health/active_units": float(np.mean(active_units(latents))),
        }
    books = meters.codebooks.finish()
    suffixes = ("_top", "_bottom") if len(books) == 2 else ("",) * len(books)
    for book, suffix in zip(books, suffixes, strict=True):
        figures[f"health/codebook_usage{suffix}"] = book.usage
        figures[f"health/perplexity{suffix}"] = book.perplexity
        figures[f"health/indices_per_code{suffix}"] = book.count / book.size
    return figures


def health_details(meters: Meters) -> dict[str, Any]:
    """What the figures of `health_figures` summarise, ready for JSON.

    `held_out`: name of the set, to which all of it belongs. `correlation`: C rows of C numbers. Of
    a Gaussian posterior `kl_bits_by_channel`, the mean an element, and `kl_histogram`: for each
    channel, how many elements lie between consecutive `kl_edges` (bits; the last, null, is
    infinity). Of codes `codebooks`, coarse to fine.
    """
    latents = meters.latents.finish()
    details: dict[str, Any] = {
        "held_out": meters.codebooks.set_name,
        "correlation": [list(row) for row in latents.correlation],
    }
    if meters.posterior.count:
        rate = meters.posterior.finish()
        details |= {
            "kl_bits_by_channel": list(rate.channel_bits),
            "kl_edges": [edge if math.isfinite(edge) else None for edge in KL_EDGES],
            "kl_histogram": [list(row) for row in rate.histogram],
        }
    if books := meters.codebooks.finish():
        details["codebooks"] = [
            {
                "size": book.size,
                "used": book.used,
                "indices": book.count,
                "perplexity": book.perplexity,
                "entropy_bits": book.entropy_bits,
            }
            for book in books
        ]
    return details


def codebook_sizes(model: Any) -> tuple[int, ...]:
    """Codes of each codebook of a model, coarse to fine; none for continuous latents."""
    config = model.config
    bottleneck = config.get("bottleneck", "gaussian")
    if bottleneck == "fsq":
        return (math.prod(config["fsq_levels"]),)
    count = {"vq": 1, "vq2": 2}.get(bottleneck, 0)
    return count * (config.get("codebook_size"),)


def make_validation(
    config: TrainConfig,
    posterior_std: float | None,
    perceptual: nn.Module | None,
    classes: tuple[str, ...],
) -> Validation | None:
    """The held-out set that the configuration names, or None.

    Args:
        config: the run's configuration.
        posterior_std: the network's constant deviation, whose step (of the same variance)
            quantises the latents; None if it has none.
        perceptual: LPIPS that is trained with; where it is None, `lpips_at_hand` is measured.
        classes: names of the class labels in training, in the order of their numbers.

    Raises:
        DataError: there is no such image, or one is of a class that is not trained on.
    """
    held_out = load_held_out(config, classes)
    if held_out is None:
        return None
    if perceptual is None:
        perceptual = lpips_at_hand(config.loss, held_out.pixels.shape[-1])
    step = FALLBACK_STEP if posterior_std is None else posterior_std * math.sqrt(12)
    with_bounds = posterior_std is None and is_bound(config)
    return Validation(held_out, step, perceptual, with_bounds=with_bounds)


def _decode(model: Any, labels: dict[str, Tensor], latents: Tensor) -> Tensor:
    sample: Tensor = model.decode(latents, **labels).sample
    return sample
