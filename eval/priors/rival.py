"""diffusers' DiTPipeline as a rival: the same transformer, and Stable Diffusion's autoencoder.

Legend: C latent channels, h w latent grid.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codec.prior.denoiser import (
    Condition,
    DenoiserShape,
    build_denoiser,
    num_classes_of,
    predict,
)
from eval.benchmark import rivals

NULL_CLASS = 1000  # what DiTPipeline takes for "no class", whatever its transformer knows
_HEAD = 64  # channels of a head of the stand-in
_WIDTHS = (256, 320, 384, 448, 512)  # that it may have; DiT-S has 384
_PATCH = 2
# DiTTransformer2DModel has one table of classes a block, and DiTPipeline's is longer than ours.
_CLASS_TABLE = "class_embedder.embedding_table"


def sd_autoencoder() -> nn.Module:
    """Return AutoencoderKL in Stable Diffusion's configuration, with random weights."""
    return rivals()[0].build()


def dit_pipeline(transformer: Any, autoencoder: nn.Module) -> DiTPipeline:
    """Return diffusers' pipeline with a transformer of the same configuration and weights.

    Args:
        transformer: DiTTransformer2DModel; only its table of classes is made longer.
        autoencoder: AutoencoderKL.
    """
    config = {**transformer.config, "num_embeds_ada_norm": NULL_CLASS}
    copy = DiTTransformer2DModel.from_config(config)
    kept = {
        name: tensor
        for name, tensor in transformer.state_dict().items()
        if not name.endswith(f"{_CLASS_TABLE}.weight")
    }
    report = copy.load_state_dict(kept, strict=False)
    assert not report.unexpected_keys
    assert all(_CLASS_TABLE in name for name in report.missing_keys)
    pipeline = DiTPipeline(transformer=copy, vae=autoencoder, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def macs(denoiser: Any, shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of one look at latents of a shape (C, h, w)."""
    reference = next(denoiser.parameters())
    noisy = torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device)
    labels = None
    if num_classes_of(denoiser) is not None:
        labels = torch.zeros(1, dtype=torch.int64, device=reference.device)
    times = torch.zeros(1, device=reference.device)
    # The fused attention of processors has no formula; its parts have.
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        predict(denoiser, noisy, times, Condition(labels=labels))
    return int(counter.get_total_flops()) // 2


def stand_in(target_macs: int, shape: tuple[int, int, int], num_classes: int | None) -> Any:
    """Return a DiTTransformer2DModel with random weights and about so much arithmetic.

    Args:
        target_macs: multiply-accumulates of one look at one latents.
        shape: (C, h, w) of the latents.
        num_classes: that it knows.
    """

    def build(width: int, layers: int) -> Any:
        return build_denoiser(
            DenoiserShape(
                architecture="dit",
                channels=shape[0],
                sample_size=shape[1],
                widths=(width,),
                layers=layers,
                head_width=_HEAD,
                patch_size=_PATCH,
                num_classes=num_classes,
            )
        ).eval()

    choices: list[tuple[float, int, int]] = []
    for width in _WIDTHS:
        one, two = macs(build(width, 1), shape), macs(build(width, 2), shape)
        layers = max(1, round(1 + (target_macs - one) / (two - one)))
        choices.append((abs(one + (layers - 1) * (two - one) - target_macs), width, layers))
    _, width, layers = min(choices)
    return build(width, layers)
