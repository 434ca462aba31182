"""Scale and shift of latents, moved into the weights: the network itself gives normalised latents.

With z = (raw - mean) / std in each channel:
* the encoder's last convolution makes raw = W x + b, so z = (W / std) x + (b - mean) / std;
* the posterior's log-variances lose 2 log std, so a sample of it is the same draw, normalised;
* a 1x1 convolution before the decoder takes z to W (std z + mean) + b = (W std) z + (W mean + b).
  It must be 1x1: a 3x3 one sees zeros beyond the edge, which stand for other latents before and
  after. Where there is none it is added.
All of it is exact but for rounding. The statistics that are left are neutral, so every formula of
every pipeline gives the same.

Legend: C latent channels, D channels of features.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codec.conversion.errors import ConversionError
from codec.conversion.normalization import Normalization

NEUTRAL: Mapping[str, object] = {
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "latents_mean": None,
    "latents_std": None,
}
Weights = dict[str, Tensor]


def fold(model: Any, normalization: Normalization) -> Any:
    """Returns a copy of an autoencoder whose raw latents are normalised.

    Args:
        model: LatentAutoencoder with a gaussian bottleneck, or AutoencoderKL; it stays as it is.
        normalization: Of its C channels.

    Raises:
        ConversionError: It is another model.
    """
    fold_one = _FOLDS.get(type(model).__name__)
    if fold_one is None or model.config.get("bottleneck", "gaussian") != "gaussian":
        kind = model.config.get("bottleneck") or "continuous"
        raise ConversionError(
            f"found {type(model).__name__} with {kind} latents, expected LatentAutoencoder with a "
            "gaussian bottleneck or AutoencoderKL: no other network takes a scale and a shift "
            "exactly, so leave them to scaling_factor and shift_factor"
        )
    dtype = next(model.parameters()).dtype
    weights = {name: one.detach().to(torch.float64) for name, one in model.state_dict().items()}
    changes = fold_one(model, weights, normalization)
    # entries with an underscore say which others were defaults, which from_config then restores
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    folded = type(model).from_config({**config, **NEUTRAL, **changes})
    folded.load_state_dict({name: one.to(dtype) for name, one in weights.items()})
    nn.Module.to(folded, dtype)
    return folded.eval()


def _fold_latent_autoencoder(
    model: Any, weights: Weights, normalization: Normalization
) -> dict[str, object]:
    last = f"encoder.stages.{len(model.encoder.stages) - 1}"
    std = model.config.posterior_std
    if std is not None:
        # A deviation for each channel is what an encoder that learned it says; here a constant.
        weight, bias = weights[f"{last}.weight"], weights[f"{last}.bias"]
        constant = torch.full_like(bias, 2 * math.log(std))
        weights[f"{last}.weight"] = torch.cat([weight, torch.zeros_like(weight)])
        weights[f"{last}.bias"] = torch.cat([bias, constant])
    _fold_rows(weights, last, normalization)
    _fold_columns(weights, "decoder.in_conv", normalization)
    return {"posterior_std": None, "decoder_in_conv": True}


def _fold_kl(model: Any, weights: Weights, normalization: Normalization) -> dict[str, object]:
    last = "quant_conv" if model.config.use_quant_conv else "encoder.conv_out"
    _fold_rows(weights, last, normalization)
    _fold_columns(weights, "post_quant_conv", normalization)
    return {"use_post_quant_conv": True}


_FOLDS = {"LatentAutoencoder": _fold_latent_autoencoder, "AutoencoderKL": _fold_kl}


def _fold_rows(weights: Weights, name: str, normalization: Normalization) -> None:
    """Changes a convolution (2 C, D, k, k) that gives means and log-variances."""
    mean, std = _columns(normalization)
    channels = len(mean)
    weight, bias = weights[f"{name}.weight"].clone(), weights[f"{name}.bias"].clone()
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, bias


def _fold_columns(weights: Weights, name: str, normalization: Normalization) -> None:
    """Changes a 1x1 convolution (C, C, 1, 1) that takes latents; adds it if there is none."""
    mean, std = _columns(normalization)
    identity = torch.eye(len(mean), dtype=torch.float64)[:, :, None, None]
    weight = weights.get(f"{name}.weight", identity)
    bias = weights.get(f"{name}.bias", torch.zeros_like(mean))
    weights[f"{name}.weight"] = weight * std[None, :, None, None]
    weights[f"{name}.bias"] = bias + weight[:, :, 0, 0] @ mean


def _columns(normalization: Normalization) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(normalization.mean, dtype=torch.float64)
    return mean, torch.tensor(normalization.std, dtype=torch.float64)
