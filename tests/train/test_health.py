"""Each ailment is named with what was seen and the setting to change; health is silence."""

import math
from collections.abc import Callable

import pytest

from train.health import health_warnings
from train.sections import TrainConfig

MakeConfig = Callable[..., TrainConfig]

HEALTHY = {
    "loss/total": 0.4,
    "optim/gradient_norm": 3.0,
    "adv/accuracy_real": 0.8,
    "adv/accuracy_fake": 0.97,
    "health/kl_bits": 1.2,
    "health/active_units": 1.0,
    "health/latent_std": 2.7,
    "health/codebook_usage_top": 0.9,
    "health/codebook_usage_bottom": 0.4,
    "health/indices_per_code_top": 8.0,
    "health/indices_per_code_bottom": 32.0,
}


def test_healthy_figures_raise_no_warning(make_config: MakeConfig) -> None:
    config = make_config(loss={"kl_weight": 0.0})
    assert health_warnings(HEALTHY, config) == []
    assert health_warnings({}, config) == []


@pytest.mark.parametrize(
    ("figures", "sections", "seen", "settings"),
    [
        (
            {"health/kl_bits": 0.004},
            {"loss": {"kl_weight": 8.0}},
            "the posterior collapses: latents carry 0.004 bits an element",
            ("loss.kl_weight (now 8)", "loss.kl_schedule", "loss.kl_warmup", "loss.free_bits"),
        ),
        (
            {"health/active_units": 0.25},
            {},
            "only 25% of the latent channels vary over images",
            ("loss.kl_weight", "loss.free_bits, now 0"),
        ),
        (
            {"health/latent_std": 400.0},
            {"loss": {"kl_weight": 0.0}},
            "latents explode: their standard deviation is 400",
            ("loss.kl_weight above 0", "optimizer.learning_rate"),
        ),
        (
            {"health/codebook_usage_bottom": 0.013},
            {"model": {"bottleneck": "vq2"}},
            "the bottom codebook dies: 1.3% of its codes are used",
            ("codebook.restart_below", "codebook.kmeans_init", "model.codebook_cosine"),
        ),
        (
            {"health/codebook_usage": 0.1, "health/indices_per_code": 2.0},
            {"model": {"bottleneck": "fsq"}},
            "the codebook dies: 10.0% of its codes are used",
            ("model.fsq_levels",),
        ),
        (
            {"adv/accuracy_real": 0.99},
            {},
            "the discriminator wins: it tells 99% of the real and 97% of the decoded patches",
            (
                "adversarial.disc_weight",
                "adversarial.disc_learning_rate",
                "adversarial.r1_weight",
                "adversarial.disc_start",
            ),
        ),
        (
            {"adv/accuracy_real": 0.01, "adv/accuracy_fake": 0.02},
            {},
            "the discriminator loses: it tells 1% of the real and 2% of the decoded patches",
            ("adversarial.disc_learning_rate", "adversarial.disc_warmup"),
        ),
        (
            {"optim/gradient_norm": 21.0},
            {},
            "gradients are clipped hard: their norm is 21",
            ("optimizer.max_grad_norm (now 1)", "optimizer.learning_rate"),
        ),
    ],
)
def test_an_ailment_is_named(
    make_config: MakeConfig,
    figures: dict[str, float],
    sections: dict[str, dict[str, object]],
    seen: str,
    settings: tuple[str, ...],
) -> None:
    warnings = health_warnings({**HEALTHY, **figures}, make_config(**sections))
    assert len(warnings) == 1
    assert seen in warnings[0]
    for setting in settings:
        assert setting in warnings[0]
    assert health_warnings({**HEALTHY}, make_config(**sections)) == []


def test_every_setting_that_is_named_exists(make_config: MakeConfig) -> None:
    sick = {
        **HEALTHY,
        "health/kl_bits": 0.0,
        "health/latent_std": math.inf,
        "health/codebook_usage_top": 0.0,
        "adv/accuracy_real": 1.0,
        "optim/gradient_norm": 1e9,
    }
    config = make_config(loss={"kl_weight": 0.0})
    text = " ".join(health_warnings(sick, config))
    words = [word.strip("(),;").split("/")[0] for word in text.split()]
    named = [
        word for word in words if word.split(".")[0] in TrainConfig.model_fields and "." in word
    ]
    assert len(named) > 10
    for name in named:
        section, key = name.split(".")
        assert hasattr(getattr(config, section), key), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_a_discriminator_without_finite_logits_neither_wins_nor_loses(
    make_config: MakeConfig, kind: str, value: float
) -> None:
    """Comparisons with NaN are false, so both accuracies are then 0."""
    figures = {f"adv/logits_{kind}": value, "adv/accuracy_real": 0.0, "adv/accuracy_fake": 0.0}
    (warning,) = health_warnings(
        {**HEALTHY, **figures}, make_config(adversarial={"disc_learning_rate": 0.03})
    )
    assert warning == (
        "the discriminator diverged: its logits are not finite; lower "
        "adversarial.disc_learning_rate (now 0.03)"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["optim/gradient_norm", "adv/accuracy_real", "adv/accuracy_fake"])
def test_what_is_not_finite_is_neither_clipped_nor_accurate(
    make_config: MakeConfig, name: str, value: float
) -> None:
    sure = {"adv/accuracy_real": 0.99, "adv/accuracy_fake": 0.99} if "adv" in name else {}
    assert health_warnings({**HEALTHY, **sure, name: value}, make_config()) == []


def test_few_indices_are_no_dying_codebook(make_config: MakeConfig) -> None:
    """1000 indices cannot use 4096 codes."""
    figures = {"health/codebook_usage": 0.15, "health/indices_per_code": 0.24}
    assert health_warnings(figures, make_config(model={"bottleneck": "vq"})) == []
