"""What goes wrong in such trainings, seen in logged figures and said in plain words.

Each warning says what was seen and which setting to change.
"""

import math
from collections.abc import Callable, Mapping

from train.sections import TrainConfig

COLLAPSED_BITS = 0.05
"""Bits an element: a useful latent carries tens of times as much, an ignored one about nothing."""
ACTIVE_SHARE = 0.5
"""Share of channels that vary over data; fewer means that more than half of them are wasted."""
CODEBOOK_USAGE = 0.2
"""Share of the codes in use; a codebook that lives uses most of them, a dying one a few percent."""
MIN_INDICES_PER_CODE = 1.0
"""Fewer indices than codes leave codes unseen whatever the encoder does."""
WON_ACCURACY = 0.95
"""Of both classes: a discriminator so sure has no gradient left to teach with (hinge above all)."""
LOST_ACCURACY = 0.05
"""Of both classes: chance is half, so it takes real images for decoded ones and the reverse."""
EXPLODED_STD = 30.0
"""Raw latents; those of a working autoencoder have deviations of about 1 to 6."""
GRADIENT_FACTOR = 20.0
"""Norm over max_grad_norm; steps clipped to a twentieth no longer follow the loss."""


def health_warnings(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    """Warnings about logged figures, none if they are healthy.

    Args:
        figures: means over a stretch of training, or of a validation, by logged name; what is
            missing is not judged.
        config: the run's configuration.
    """
    checks: tuple[Callable[[Mapping[str, float], TrainConfig], list[str]], ...] = (
        _posterior,
        _latents,
        _codebooks,
        _discriminator,
        _gradient,
    )
    return [warning for check in checks for warning in check(figures, config)]


def _posterior(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    seen = []
    bits, active = figures.get("health/kl_bits"), figures.get("health/active_units")
    if bits is not None and bits < COLLAPSED_BITS:
        seen.append(f"latents carry {bits:.3g} bits an element")
    if active is not None and active < ACTIVE_SHARE:
        seen.append(f"only {active:.0%} of the latent channels vary over images")
    if not seen:
        return []
    loss = config.loss
    return [
        f"the posterior collapses: {' and '.join(seen)}; lower loss.kl_weight (now "
        f"{loss.kl_weight:g}), let it grow (loss.kl_schedule, now {loss.kl_schedule}, over "
        f"loss.kl_warmup, now {loss.kl_warmup} images), or leave the first bits uncharged "
        f"(loss.free_bits, now {loss.free_bits:g})"
    ]


def _latents(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    std, weight = figures.get("health/latent_std", 0.0), config.loss.kl_weight
    if not std > EXPLODED_STD or weight > 0 or config.distillation.teacher is not None:
        return []
    return [
        f"latents explode: their standard deviation is {std:.3g} and nothing holds them; set "
        "loss.kl_weight above 0 (now 0), such as 1e-4, or lower optimizer.learning_rate (now "
        f"{config.optimizer.learning_rate:g})"
    ]


def _codebooks(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    warnings = []
    for suffix, name in (("", "the codebook"), ("_top", "the top"), ("_bottom", "the bottom")):
        usage = figures.get(f"health/codebook_usage{suffix}")
        counted = figures.get(f"health/indices_per_code{suffix}", MIN_INDICES_PER_CODE)
        if usage is None or usage >= CODEBOOK_USAGE or counted < MIN_INDICES_PER_CODE:
            continue
        subject = name if not suffix else f"{name} codebook"
        warnings.append(f"{subject} dies: {usage:.1%} of its codes are used; {_remedy(config)}")
    return warnings


def _remedy(config: TrainConfig) -> str:
    if config.model.bottleneck == "fsq":
        return (
            f"take fewer or smaller model.fsq_levels (now {list(config.model.fsq_levels)}): such "
            "codes are fixed, and the encoder reaches few of them"
        )
    codebook = config.codebook
    return (
        f"raise codebook.restart_below (now {codebook.restart_below:g}) so that unused codes start "
        f"anew, start from clusters (codebook.kmeans_init, now {codebook.kmeans_init}), compare by "
        f"angle (model.codebook_cosine, now {config.model.codebook_cosine}), or lower "
        f"model.codebook_size (now {config.model.codebook_size})"
    )


def _discriminator(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    settings = config.adversarial
    logits = (figures.get(f"adv/logits_{kind}", 0.0) for kind in ("real", "fake"))
    if not all(map(math.isfinite, logits)):  # of which no accuracy says anything
        return [
            "the discriminator diverged: its logits are not finite; lower "
            f"adversarial.disc_learning_rate (now {settings.disc_learning_rate:g})"
        ]
    if "adv/accuracy_real" not in figures or "adv/accuracy_fake" not in figures:
        return []
    real, fake = figures["adv/accuracy_real"], figures["adv/accuracy_fake"]
    if not (math.isfinite(real) and math.isfinite(fake)):
        return []
    seen = f"it tells {real:.0%} of the real and {fake:.0%} of the decoded patches rightly"
    if min(real, fake) > WON_ACCURACY:
        return [
            f"the discriminator wins: {seen}; lower adversarial.disc_learning_rate (now "
            f"{settings.disc_learning_rate:g}), penalise its gradient (adversarial.r1_weight, now "
            f"{settings.r1_weight:g}), raise adversarial.disc_weight (now "
            f"{settings.disc_weight:g}), or let the codec train longer before "
            f"adversarial.disc_start (now {settings.disc_start} images)"
        ]
    if max(real, fake) < LOST_ACCURACY:
        return [
            f"the discriminator loses: {seen}; raise adversarial.disc_learning_rate (now "
            f"{settings.disc_learning_rate:g}), let it learn before it counts "
            f"(adversarial.disc_warmup, now {settings.disc_warmup} images), or lower "
            f"adversarial.disc_weight (now {settings.disc_weight:g}) or adversarial.r1_weight (now "
            f"{settings.r1_weight:g})"
        ]
    return []


def _gradient(figures: Mapping[str, float], config: TrainConfig) -> list[str]:
    norm, optimizer = figures.get("optim/gradient_norm", 0.0), config.optimizer
    # No limit clips what is not finite: such a step is skipped (fp16) or ends the run.
    if not math.isfinite(norm) or norm <= GRADIENT_FACTOR * optimizer.max_grad_norm:
        return []
    return [
        f"gradients are clipped hard: their norm is {norm:.3g}, far above "
        f"optimizer.max_grad_norm (now {optimizer.max_grad_norm:g}); lower "
        f"optimizer.learning_rate (now {optimizer.learning_rate:g}), lengthen "
        f"optimizer.warmup_images (now {optimizer.warmup_images}), or raise the limit if the loss "
        "falls steadily"
    ]
