"""Settings that are right each by itself and wrong together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.sections import ModelConfig, TrainConfig

LPIPS_SIDE = 32
"""Smaller pictures do not survive the strides of every backbone; as `eval.lpips.MIN_SIDE`."""
LATENT_ALONE = (
    "decoder_layers",
    "decoder_block_out_channels",
    "posterior_std",
    "codebook_size",
    "codebook_cosine",
    "fsq_levels",
)
"""Settings of LatentAutoencoder that AutoencoderKL knows nothing of, beside what is refused."""


def contradictions(config: "TrainConfig") -> Iterator[tuple[bool, str]]:
    """Pairs of whether settings contradict each other, and what to say then."""
    model, loss, crop = config.model, config.loss, config.data.crop_size
    adversarial, regularizer = config.adversarial, config.regularizer
    gaussian = model.bottleneck == "gaussian"
    has_critic = adversarial.disc_weight > 0 or adversarial.feature_matching_weight > 0
    levels = len(model.block_out_channels)
    layers = {len(model.encoder_layers), len(model.decoder_layers)}
    widths = model.decoder_block_out_channels or model.block_out_channels
    yield (
        layers | {len(widths)} != {levels},
        f"model.block_out_channels has {levels} levels: encoder_layers, decoder_layers and "
        "decoder_block_out_channels need one entry for each",
    )
    yield (
        model.bottleneck == "fsq" and len(model.fsq_levels) != model.latent_channels,
        f"model.fsq_levels needs one entry for each of {model.latent_channels} latent_channels",
    )
    yield (
        model.bottleneck == "vq2" and model.latent_channels % 2 == 1,
        "model.bottleneck vq2 needs an even number of latent_channels: half for each level",
    )
    yield (
        model.architecture == "autoencoder_kl" and (not gaussian or model.num_classes is not None),
        "model.architecture autoencoder_kl has neither codebooks nor class labels: use latent",
    )
    yield (
        model.architecture == "autoencoder_kl" and any(w % 32 for w in widths),
        "model.architecture autoencoder_kl needs block_out_channels that are multiples of 32",
    )
    unused = _unused_settings(model)
    yield (
        bool(unused),
        f"model.architecture autoencoder_kl does not use {' and '.join(unused)}: leave it at "
        "its default, or use latent",
    )
    yield (
        model.num_classes is not None and not config.data.labels,
        "model.num_classes needs data.labels=true: a conditional codec learns from labels",
    )
    yield (
        model.freeze_encoder and model.init_from is None,
        "model.freeze_encoder needs model.init_from: a decoder cannot learn from an untrained "
        "encoder that never changes",
    )
    yield (
        loss.tc_weight > 0 and 2 ** (levels - 1) != crop,
        f"loss.tc_weight needs vector latents: data.crop_size {crop} must equal the downscale "
        f"factor {2 ** (levels - 1)} of model.block_out_channels",
    )
    yield (
        not gaussian and loss.kl_target is not None,
        "loss.kl_target needs model.bottleneck gaussian: codes have no KL",
    )
    if regularizer.equivariance_probability > 0:
        crop = int(crop * regularizer.equivariance_min_scale)
    smaller = "raise data.crop_size or regularizer.equivariance_min_scale"
    yield (
        loss.perceptual_weight > 0 and crop < LPIPS_SIDE,
        f"LPIPS would see images of {crop} pixels and needs {LPIPS_SIDE}: {smaller}",
    )
    yield (
        has_critic and crop < 3 * 2**adversarial.disc_layers,
        f"the discriminator of {adversarial.disc_layers} layers would see images of {crop} "
        f"pixels and needs {3 * 2**adversarial.disc_layers}: lower adversarial.disc_layers, or "
        f"{smaller}",
    )
    yield (
        not gaussian and regularizer.quantize_step is not None,
        "regularizer.quantize_step needs model.bottleneck gaussian: codes are rounded",
    )
    yield (
        not gaussian and config.distillation.teacher is not None,
        "distillation.teacher needs model.bottleneck gaussian",
    )
    yield from _of_the_rate(config)
    yield (
        config.run.best_metric == "lpips" and loss.perceptual_weight == 0,
        "run.best_metric lpips needs loss.perceptual_weight above 0: without it LPIPS is measured "
        "only where a backbone is at hand",
    )


def _of_the_rate(config: "TrainConfig") -> Iterator[tuple[bool, str]]:
    """What does not go with a charge for bits, as far as the settings alone tell."""
    model, loss, rate = config.model, config.loss, config.rate
    charged = rate.rate_weight > 0
    is_built = charged and model.init_from is None
    is_learned = model.posterior_std is None or model.architecture == "autoencoder_kl"
    nothing_disturbs = config.regularizer.quantize_step is None and loss.kl_weight == 0
    downscale = 2 ** (len(model.block_out_channels) - 1)
    yield (
        charged and model.freeze_encoder,
        "rate.rate_weight needs an encoder that learns: set model.freeze_encoder to false",
    )
    yield (
        charged and model.bottleneck != "gaussian",
        "rate.rate_weight needs model.bottleneck gaussian: codes have no step to be rounded to",
    )
    yield (
        charged and loss.kl_target is not None,
        "rate.rate_weight and loss.kl_target both move the rate: leave one of them out",
    )
    yield (
        is_built and config.data.crop_size == downscale,
        f"rate.rate_weight needs latents on a grid: data.crop_size {config.data.crop_size} must be "
        f"larger than the downscale factor {downscale} of model.block_out_channels",
    )
    yield (
        is_built and is_learned and nothing_disturbs and config.regularizer.latent_noise == 0,
        "rate.rate_weight needs something that keeps latents from shrinking to no bits at no cost: "
        "set model.posterior_std, regularizer.quantize_step, regularizer.latent_noise or "
        "loss.kl_weight",
    )
    yield (
        charged and rate.rate_warmup > rate.rate_start,
        f"rate.rate_warmup {rate.rate_warmup} has to end at rate.rate_start {rate.rate_start}, and "
        "there are not so many images before it: raise rate.rate_start",
    )


def _unused_settings(model: "ModelConfig") -> list[str]:
    """What an AutoencoderKL would ignore, each with the value found.

    Defaults are not meant, and what it does anyway is no contradiction: its posterior is learned,
    and its decoder has the encoder's widths and blocks at every level.
    """
    if model.architecture != "autoencoder_kl" or model.init_from is not None:
        return []
    own = {
        "decoder_layers": model.encoder_layers,
        "decoder_block_out_channels": model.block_out_channels,
        "posterior_std": None,
    }
    found = {name: getattr(model, name) for name in LATENT_ALONE}
    defaults = {name: type(model).model_fields[name].default for name in LATENT_ALONE}
    return [
        f"model.{name} {list(value) if isinstance(value, tuple) else value}"
        for name, value in found.items()
        if value not in (defaults[name], own.get(name, defaults[name]))
    ]
