"""A small classifier of latents: whether samples show what they were asked to show.

It learns real latents of the training split and their mirror images. Its size and budget were
chosen by cross-validation within the training split of the clothing photographs alone; neither
validation nor test images had a part in them, and training stops by the budget.

Legend: B batch, C latent channels, h w latent grid, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8  # of the normalisation
_BATCH = 256  # when nothing is learned


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """Size and budget.

    Attributes:
        width: channels of the first layers; the deepest have four times as many.
        epochs: times that each training image is seen, mirrored or not.
        batch_size: B.
        learning_rate: the highest of a cosine with a warm-up.
        weight_decay: of AdamW.
        dropout: before the last layer.
        channel_dropout: of whole channels in each block.
        label_smoothing: see torch.
        mixup: parameter of the Beta distribution (arXiv:1710.09412).
        shift: most cells by which latents are moved to a side.
        seed: of all that is random.
    """

    width: int = 48
    epochs: int = 24
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    channel_dropout: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.3
    shift: int = 2
    seed: int = 0


USUAL = ClassifierSettings()


class LatentClassifier(nn.Module):
    """Latents (B, C, h, w) to logits (B, K): convolutions at a half to a sixteenth of the grid."""

    def __init__(self, channels: int, classes: int, settings: ClassifierSettings) -> None:
        super().__init__()
        width, drop = settings.width, settings.channel_dropout
        widths = (width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), _Block(4 * channels, width, 1, 0.0)]
        for before, after in pairwise(widths):
            layers += [_Block(before, before, 1, drop), _Block(before, after, 2, drop)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(widths[-1], classes))

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(latents).mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """A convolution, normalised; what it does not change in size it adds to."""

    def __init__(self, before: int, after: int, stride: int, drop: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, after)
        self.drop = nn.Dropout2d(drop)
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(F.silu(self.norm(self.conv(x))))
        return x + y if self.adds else y


def train_classifier(
    latents: Tensor,
    mirrored: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: ClassifierSettings = USUAL,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    advance: Callable[[], None] = lambda: None,
) -> LatentClassifier:
    """Train on real latents.

    Args:
        latents: scaled, float32 (N, C, h, w).
        mirrored: those of the mirrored images, likewise.
        labels: int64 (N,) class numbers.
        num_classes: K.
        settings: size and budget.
        device: where to train.
        dtype: of the convolutions; weights stay float32.
        advance: is called after each epoch.
    """
    device = device or torch.device("cpu")
    generator = torch.Generator().manual_seed(settings.seed)
    batch = min(settings.batch_size, len(latents))
    per_epoch = len(latents) // batch
    with torch.random.fork_rng():  # initialisation and dropout draw from the global generators
        torch.manual_seed(settings.seed)
        model = LatentClassifier(latents.shape[1], num_classes, settings).to(device)
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, _warm_cosine(settings.epochs * per_epoch)
        )
        for _ in range(settings.epochs):
            order = torch.randperm(len(latents), generator=generator)
            for places in torch.split(order, batch)[:per_epoch]:
                flip = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
                x = torch.where(flip, mirrored[places], latents[places])
                targets = F.one_hot(labels[places], num_classes).float()
                x, targets = _mixed(_shifted(x, settings.shift, generator), targets, settings)
                x = x.to(device).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(),
                    targets.to(device),
                    label_smoothing=settings.label_smoothing,
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            advance()
    return model.eval()


@torch.inference_mode()
def classify(model: LatentClassifier, latents: Tensor) -> Tensor:
    """Return the likeliest class, int64 (N,), of latents (N, C, h, w), in float32."""
    device = next(model.parameters()).device
    found = [
        model(part.to(device).float()).argmax(dim=1).cpu() for part in torch.split(latents, _BATCH)
    ]
    return torch.cat(found)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps * 3 // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move a batch by the same few cells; the edge is repeated."""
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    height, width = x.shape[-2:]
    padded = F.pad(x, (most,) * 4, mode="replicate")
    return padded[..., down : down + height, right : right + width]


def _mixed(x: Tensor, targets: Tensor, settings: ClassifierSettings) -> tuple[Tensor, Tensor]:
    """Mix each latents with another of the batch, and their classes likewise (mixup)."""
    if settings.mixup == 0:
        return x, targets
    share = float(torch.distributions.Beta(settings.mixup, settings.mixup).sample())
    return torch.lerp(x.flip(0), x, share), torch.lerp(targets.flip(0), targets, share)
