"""Each loss term moves the parameters that it should, and only those, in a real optimizer step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.lpips import BackboneError, load_lpips
from train.meter import Meter
from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
NONE = {
    "l1_weight": 0.0,
    "perceptual_weight": 0.0,
    "kl_weight": 0.0,
    "commitment_weight": 0.0,
}
VECTOR = {  # latents of 1x1 for crops of 32 pixels
    "block_out_channels": [8, 8, 8, 8, 8, 16],
    "encoder_layers": [0, 0, 1, 0, 0, 1],
    "decoder_layers": [0, 0, 1, 0, 0, 1],
}
VQ = {"bottleneck": "vq", "codebook_size": 8}
DISC = {"disc_layers": 1, "disc_channels": 8}
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "l1": ({"loss": {"l1_weight": 1}}, {"encoder", "decoder"}),
    "l2": ({"loss": {"l2_weight": 1}}, {"encoder", "decoder"}),
    "charbonnier": ({"loss": {"charbonnier_weight": 1}}, {"encoder", "decoder"}),
    "multiscale": ({"loss": {"multiscale_weight": 1}}, {"encoder", "decoder"}),
    "gradient": ({"loss": {"gradient_weight": 1}}, {"encoder", "decoder"}),
    "wavelet": ({"loss": {"wavelet_weight": 1}}, {"encoder", "decoder"}),
    "lpips": ({"loss": {"perceptual_weight": 1}}, {"encoder", "decoder"}),
    "logvar": (
        {"loss": {"l1_weight": 1, "learned_logvar": True}},
        {"encoder", "decoder", "logvar"},
    ),
    "kl": ({"loss": {"kl_weight": 1}}, {"encoder"}),
    "kl with free bits above it": ({"loss": {"kl_weight": 1, "free_bits": 99}}, set()),
    "a learned posterior": (
        {"loss": {"kl_weight": 1}, "model": {"posterior_std": None}},
        {"encoder"},
    ),
    "commitment": ({"loss": {"commitment_weight": 1}, "model": VQ}, {"encoder", "codebook"}),
    "codebook": (
        {"loss": {"l1_weight": 1}, "model": VQ},
        {"encoder", "decoder", "codebook"},
    ),
    "fsq": (
        {"loss": {"l1_weight": 1}, "model": {"bottleneck": "fsq"}},
        {"encoder", "decoder"},
    ),
    "adversarial": (
        {"adversarial": {"disc_weight": 1, **DISC}},
        {"encoder", "decoder", "discriminator"},
    ),
    "adversarial, non-saturating": (
        {"adversarial": {"disc_weight": 1, "disc_loss": "non_saturating", **DISC}},
        {"encoder", "decoder", "discriminator"},
    ),
    "feature matching": (
        {"adversarial": {"feature_matching_weight": 1, **DISC}},
        {"encoder", "decoder", "discriminator"},
    ),
    "a discriminator that warms up": (
        {"adversarial": {"disc_weight": 1, "disc_start": 8, "disc_warmup": 8, **DISC}},
        {"discriminator"},
    ),
    "a discriminator that waits": (
        {"adversarial": {"disc_weight": 1, "disc_start": 8, **DISC}},
        set(),
    ),
    "total correlation": (
        {"loss": {"tc_weight": 1}, "model": VECTOR},
        {"encoder", "total_correlation"},
    ),
    "distillation of the encoder": ({"distillation": {"latent_weight": 1}}, {"encoder"}),
    "distillation of the decoder": (
        {"distillation": {"latent_weight": 0}, "loss": {"l1_weight": 1}},
        {"decoder"},
    ),
    "a frozen encoder": (
        {"loss": {"l1_weight": 1}, "model": {"freeze_encoder": True}},
        {"decoder"},
    ),
    "equivariance": (
        {"loss": {"l1_weight": 1}, "regularizer": {"equivariance_probability": 1.0}},
        {"encoder", "decoder"},
    ),
    "quantised latents": (
        {"loss": {"l1_weight": 1}, "regularizer": {"quantize_step": 0.5}},
        {"encoder", "decoder"},
    ),
}


def groups(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    """Copies of everything that can learn."""
    objective, found = trainer.objective, {}
    for name, tensor in trainer.model.state_dict().items():
        group = "codebook" if name.startswith("bottleneck.") else name.split(".")[0]
        found.setdefault(group, []).append(tensor)
    if objective.logvar is not None:
        found["logvar"] = [objective.logvar]
    for name, part in (
        ("discriminator", objective.adversary),
        ("total_correlation", objective.total_correlation),
    ):
        if part is not None:
            found[name] = list(part.network.parameters())
    return {
        name: [tensor.detach().clone() for tensor in tensors] for name, tensors in found.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_term_moves_what_it_should(case: str, make_config: MakeConfig, model_dir: Path) -> None:
    sections, expected = CASES[case]
    loss = {**NONE, **sections.get("loss", {})}
    if loss["perceptual_weight"]:
        try:
            load_lpips("squeeze")
        except BackboneError as error:
            pytest.skip(f"no LPIPS backbone at hand: {error}")
    sections = {**sections, "loss": loss}
    if "distillation" in sections:
        sections["distillation"] = {"teacher": str(model_dir), **sections["distillation"]}
    if case == "a frozen encoder":
        sections["model"] = {"init_from": str(model_dir), "freeze_encoder": True}
    optimizer = {"weight_decay": 0.0, "warmup_images": 0}
    trainer = Trainer(make_config(**sections, optimizer=optimizer))
    if case == "feature matching":  # a discriminator that has seen nothing matches nothing
        assert trainer.objective.adversary is not None
    before = groups(trainer)
    assert trainer.stepper.run(trainer._batches(), 0, Meter()).is_finite
    after = groups(trainer)
    changed = {
        name
        for name in before
        if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }
    assert changed == expected
