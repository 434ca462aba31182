"""Each loss term moves the parameters that it should, and only those, in a real optimizer step."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codec.codebooks import Quantised
from eval.lpips import BackboneError, load_lpips
from train.meter import Meter
from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
Groups = dict[str, list[torch.Tensor]]
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
VQ2 = {"bottleneck": "vq2", "codebook_size": 8}
CODEBOOKS = {"bottleneck.top", "bottleneck.bottom"}
TO_CODES = {"bottleneck.to_top", "bottleneck.from_top", "bottleneck.to_bottom"}
LABELLED = {  # of 4 classes, so that the last two rows of the network are never trained
    "model": {"num_classes": 6},
    "data": {"folders": [], "factors": 40, "labels": True},
}
OPTIMIZER = {"weight_decay": 0.0, "warmup_images": 0}
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
    "commitment": (
        {"loss": {"commitment_weight": 1}, "model": VQ},
        {"encoder", "bottleneck.quantizer"},
    ),
    "codebook": (
        {"loss": {"l1_weight": 1}, "model": VQ},
        {"encoder", "decoder", "bottleneck.quantizer"},
    ),
    "commitment of two levels": (
        {"loss": {"commitment_weight": 1}, "model": VQ2},
        {"encoder"} | TO_CODES | CODEBOOKS,
    ),
    "codebooks of two levels": (
        {"loss": {"l1_weight": 1}, "model": VQ2},
        {"encoder", "decoder"} | TO_CODES | CODEBOOKS,
    ),
    "class labels": (
        {"loss": {"l1_weight": 1}, **LABELLED},
        {"encoder", "decoder", "encoder.class_bias", "decoder.class_bias"},
    ),
    "kl with class labels": (
        {"loss": {"kl_weight": 1}, **LABELLED},
        {"encoder", "encoder.class_bias"},
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


def groups(trainer: Trainer) -> Groups:
    """Copies of everything that can learn."""
    objective, found = trainer.objective, {}
    for name, tensor in trainer.model.state_dict().items():
        parts = name.split(".")
        has_own = parts[0] == "bottleneck" or parts[1] == "class_bias"
        group = ".".join(parts[: 2 if has_own else 1])
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


def changed_by_a_step(trainer: Trainer) -> set[str]:
    """Groups of which anything changes in one real step."""
    before = groups(trainer)
    assert trainer.stepper.run(trainer._batches(), 0, Meter()).is_finite
    return differing(before, groups(trainer))


def differing(first: Groups, second: Groups) -> set[str]:
    assert first.keys() == second.keys()
    return {
        name
        for name in first
        if any(not torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))
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
    trainer = Trainer(make_config(**sections, optimizer=OPTIMIZER))
    if case == "feature matching":  # a discriminator that has seen nothing matches nothing
        assert trainer.objective.adversary is not None
    assert changed_by_a_step(trainer) == expected


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("top", {"encoder", "bottleneck.to_top"}),
        ("bottom", {"encoder"} | TO_CODES),  # the bottom sees the decoded top
    ],
)
def test_the_commitment_of_each_level_reaches_the_encoder(
    kept: str, expected: set[str], make_config: MakeConfig
) -> None:
    loss = {**NONE, "commitment_weight": 1}
    trainer = Trainer(make_config(loss=loss, model=VQ2, optimizer=OPTIMIZER))
    other = getattr(trainer.model.bottleneck, "bottom" if kept == "top" else "top")

    def without_gradient(module: Any, inputs: Any, output: Quantised) -> Quantised:
        return output._replace(commitment=output.commitment.detach())

    other.register_forward_hook(without_gradient)
    assert changed_by_a_step(trainer) == expected | CODEBOOKS


def test_codebooks_move_by_their_statistics_alone(make_config: MakeConfig) -> None:
    """What a step makes of each is what the vectors that it quantised make of a copy."""
    codebook = {"restart_below": 0.0}
    config = make_config(model=VQ2, codebook=codebook, loss=NONE | {"l1_weight": 1})
    trainer = Trainer(config)
    expected = []
    for quantizer in trainer.model.quantizers:
        still = copy.deepcopy(quantizer)
        update = quantizer.update

        def recording(*vectors: Any, still: Any = still, update: Any = update) -> None:
            still.configure(decay=config.codebook.decay, restart_below=0.0)
            still.update(*vectors)
            update(*vectors)

        quantizer.update = recording
        expected.append((quantizer.codes.clone(), still))
        assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    trainer.stepper.run(trainer._batches(), 0, Meter())
    for (start, still), quantizer in zip(expected, trainer.model.quantizers, strict=True):
        assert not torch.equal(quantizer.codes, start)
        assert torch.equal(quantizer.codes, still.codes)


def test_class_labels_move_their_own_rows(make_config: MakeConfig) -> None:
    config = make_config(loss={**NONE, "l1_weight": 1}, optimizer=OPTIMIZER, **LABELLED)
    trainer = Trainer(config)
    seen = set(next(trainer._batches()).labels.tolist())
    assert trainer.stepper.run(trainer._batches(), 0, Meter()).is_finite
    for part in (trainer.model.encoder, trainer.model.decoder):
        rows = part.class_bias.detach().abs().sum(dim=1)  # they start at zero
        assert set(rows.nonzero().flatten().tolist()) == seen


def test_r1_changes_the_discriminator_only(make_config: MakeConfig) -> None:
    found, penalties = [], []
    for r1_weight in (0.0, 10.0):
        adversarial = {"disc_weight": 1, "r1_weight": r1_weight, **DISC}
        trainer = Trainer(make_config(adversarial=adversarial, optimizer=OPTIMIZER))
        result = trainer.stepper.run(trainer._batches(), 0, Meter())
        penalties.append(result.terms.get("adv/r1"))
        found.append(groups(trainer))
    assert penalties[0] is None
    assert penalties[1] > 0
    assert differing(*found) == {"discriminator"}
