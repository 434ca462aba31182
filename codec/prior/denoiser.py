"""Denoisers: diffusers' transformer and UNet behind one call.

A denoiser looks at noisy latents and a time, and knows a class, a text's embeddings, or nothing.
The last class number is that of "no class", which classifier-free guidance starts from (Ho and
Salimans, arXiv:2207.12598).

Legend: B images, C latent channels, h w latent grid, p patch side, L tokens, D their width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from codec.prior.directory import PriorError

Architecture = Literal["dit", "unet"]
_GROUPS = 16  # of the UNet's normalisation


@dataclass(frozen=True, slots=True)
class Condition:
    """What images are to show.

    Attributes:
        labels: int64 (B,) class numbers, that of no class among them; None for a prior without.
        embeddings: (B, L, D) of texts, zeros for no text; None for a prior without.
    """

    labels: Tensor | None = None
    embeddings: Tensor | None = None

    def join(self, other: Self) -> "Condition":
        """Returns the conditions of both batches, one behind the other."""
        return Condition(_join(self.labels, other.labels), _join(self.embeddings, other.embeddings))

    def chosen(self, places: Tensor | slice) -> "Condition":
        """Returns the conditions of some of the images."""
        return Condition(
            None if self.labels is None else self.labels[places],
            None if self.embeddings is None else self.embeddings[places],
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Condition":
        """Returns the same on a device; embeddings, which are floats, in a dtype."""
        return Condition(
            None if self.labels is None else self.labels.to(device),
            None if self.embeddings is None else self.embeddings.to(device, dtype),
        )


@dataclass(frozen=True, slots=True)
class DenoiserShape:
    """How large a denoiser is, and what it knows beside noise and time.

    Attributes:
        architecture: "dit" for a transformer (arXiv:2212.09748; with embeddings that of
            arXiv:2310.00426), "unet" for a UNet (arXiv:2006.11239).
        channels: C.
        sample_size: h and w of the latents.
        widths: Channels of each level of the UNet; the transformer has one width.
        layers: Blocks of the transformer, or of each level of the UNet.
        head_width: Channels of an attention head.
        attention: Levels of the UNet with attention, 0 being the finest; its middle always has.
        patch_size: p; latents are seen as (C p p, h / p, w / p).
        dropout: Share of units left out in training.
        num_classes: Classes, not counting "no class"; None for none.
        embedding_width: D, where texts are the condition; else None.
    """

    architecture: Architecture
    channels: int
    sample_size: int
    widths: tuple[int, ...]
    layers: int
    head_width: int
    attention: tuple[int, ...] = ()
    patch_size: int = 1
    dropout: float = 0.0
    num_classes: int | None = None
    embedding_width: int | None = None


def build_denoiser(shape: DenoiserShape) -> Any:
    """Makes a denoiser with random weights.

    Raises:
        PriorError: The sizes do not go together.
    """
    if shape.num_classes is not None and shape.embedding_width is not None:
        raise PriorError("found classes and embeddings for a prior, expected one kind of condition")
    if shape.sample_size % shape.patch_size:
        raise PriorError(
            f"found latents of {shape.sample_size}x{shape.sample_size} cells, expected sides that "
            f"patches of {shape.patch_size} divide"
        )
    return _transformer(shape) if shape.architecture == "dit" else _unet(shape)


def predict(denoiser: Any, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
    """Returns what a denoiser says, of the shape of `noisy`.

    Args:
        denoiser: Of diffusers.
        noisy: (B, C, h, w) latents.
        times: (B,) from 0, clean, to 1000, all noise.
        condition: Of each image.
    """
    kind = type(denoiser).__name__
    channels, patch = noisy.shape[1], patch_of(denoiser, noisy.shape[1])
    if kind == "DiTTransformer2DModel":
        found = denoiser(noisy, timestep=times, class_labels=_labels(condition, noisy))
    elif kind == "PixArtTransformer2DModel":
        found = denoiser(
            noisy,
            encoder_hidden_states=condition.embeddings,
            timestep=times,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    else:
        x = rearrange(noisy, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch)
        x = x.contiguous(memory_format=torch.channels_last)
        if condition.embeddings is None:
            found = denoiser(x, times, class_labels=condition.labels)
        else:
            found = denoiser(x, times, encoder_hidden_states=condition.embeddings)
        whole: Tensor = rearrange(
            found.sample, "b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch
        )
        return whole
    sample: Tensor = found.sample[:, :channels]
    return sample


def patch_of(denoiser: Any, channels: int) -> int:
    """Returns p for latents of so many channels: a UNet's inputs have p * p times as many."""
    if type(denoiser).__name__ in ("DiTTransformer2DModel", "PixArtTransformer2DModel"):
        return int(denoiser.config.patch_size)
    return math.isqrt(int(denoiser.config.in_channels) // channels)


def num_classes_of(denoiser: Any) -> int | None:
    """Returns how many classes a denoiser knows, not counting "no class"; None for none."""
    config: Mapping[str, Any] = denoiser.config
    count = config.get("num_class_embeds")
    if type(denoiser).__name__ == "DiTTransformer2DModel":
        return None if config["num_embeds_ada_norm"] == 1 else int(config["num_embeds_ada_norm"])
    return None if count is None else int(count) - 1


def embedding_width_of(denoiser: Any) -> int | None:
    """Returns D of a denoiser that texts condition, else None."""
    config: Mapping[str, Any] = denoiser.config
    if type(denoiser).__name__ == "PixArtTransformer2DModel":
        return int(config["caption_channels"])
    if type(denoiser).__name__ == "UNet2DConditionModel":
        return int(config["cross_attention_dim"])
    return None


def no_condition(denoiser: Any, condition: Condition) -> Condition:
    """Returns the same for "no class" and "no text"."""
    labels, count = condition.labels, num_classes_of(denoiser)
    return Condition(
        None if labels is None or count is None else torch.full_like(labels, count),
        None if condition.embeddings is None else torch.zeros_like(condition.embeddings),
    )


def _transformer(shape: DenoiserShape) -> nn.Module:
    from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

    if len(shape.widths) != 1 or shape.widths[0] % shape.head_width:
        raise PriorError(
            f"found widths {list(shape.widths)} and heads of {shape.head_width} for a transformer, "
            "expected one width that is a multiple of the heads'"
        )
    shared = {
        "num_attention_heads": shape.widths[0] // shape.head_width,
        "attention_head_dim": shape.head_width,
        "in_channels": shape.channels,
        "out_channels": shape.channels,
        "num_layers": shape.layers,
        "sample_size": shape.sample_size,
        "patch_size": shape.patch_size,
        "dropout": shape.dropout,
    }
    if shape.embedding_width is not None:
        model: nn.Module = PixArtTransformer2DModel(
            **shared,
            cross_attention_dim=shape.widths[0],
            caption_channels=shape.embedding_width,
            use_additional_conditions=False,
        )
        return model
    model = DiTTransformer2DModel(**shared, num_embeds_ada_norm=shape.num_classes or 1)
    for module in model.modules():
        # Each block would drop labels by itself; the training drops them for the whole network.
        if hasattr(module, "token_drop"):
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return model


def _unet(shape: DenoiserShape) -> nn.Module:
    from diffusers import UNet2DConditionModel, UNet2DModel

    if any(width % _GROUPS or width % shape.head_width for width in shape.widths):
        raise PriorError(
            f"found widths {list(shape.widths)} for a UNet, expected multiples of {_GROUPS} and of "
            f"the heads' {shape.head_width}"
        )
    least = 1 << (len(shape.widths) - 1)
    side = shape.sample_size // shape.patch_size
    if side % least:
        raise PriorError(
            f"found {side}x{side} patches for a UNet of {len(shape.widths)} levels, expected sides "
            f"that {least} divides"
        )
    cross = "CrossAttn" if shape.embedding_width is not None else "Attn"
    has = [level in shape.attention for level in range(len(shape.widths))]
    down = tuple(f"{cross}DownBlock2D" if there else "DownBlock2D" for there in has)
    up = tuple(f"{cross}UpBlock2D" if there else "UpBlock2D" for there in reversed(has))
    shared = {
        "sample_size": side,
        "in_channels": shape.channels * shape.patch_size**2,
        "out_channels": shape.channels * shape.patch_size**2,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.layers,
        "norm_num_groups": _GROUPS,
        "dropout": shape.dropout,
        "resnet_time_scale_shift": "scale_shift",
    }
    if shape.embedding_width is not None:
        # diffusers calls the number of heads attention_head_dim here.
        heads = tuple(width // shape.head_width for width in shape.widths)
        model: nn.Module = UNet2DConditionModel(
            **shared, cross_attention_dim=shape.embedding_width, attention_head_dim=heads
        )
        return model
    embeds = None if shape.num_classes is None else shape.num_classes + 1
    model = UNet2DModel(**shared, attention_head_dim=shape.head_width, num_class_embeds=embeds)
    return model


def _labels(condition: Condition, noisy: Tensor) -> Tensor:
    """Returns the labels of a transformer, which without classes has one."""
    if condition.labels is None:
        return torch.zeros(len(noisy), dtype=torch.int64, device=noisy.device)
    return condition.labels


def _join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])
