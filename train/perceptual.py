"""LPIPS for held-out figures where it is not trained with: measured if a backbone is at hand."""

import os

from codec.console import print_warning
from eval.lpips import MIN_SIDE, BackboneError, PerceptualDistance, find_backbone, load_lpips
from train.sections import LossConfig


def lpips_at_hand(loss: LossConfig, side: int) -> PerceptualDistance | None:
    """LPIPS with the backbone file that is configured or that the environment names, on the CPU.

    Nothing is downloaded for a figure that nobody asked for. What keeps it from being measured is
    said on stderr, by the first process.

    Args:
        loss: which network, and its file.
        side: of the held-out images, in pixels.
    """
    net, reason = loss.perceptual_net, ""
    path = loss.perceptual_backbone or find_backbone(net)
    if path is None:
        reason = (
            f"found no backbone file of {net}, expected one named by loss.perceptual_backbone or "
            "LATENT_CODEC_LPIPS"
        )
    elif side < MIN_SIDE:
        reason = f"found held-out images of {side} pixels, expected sides of {MIN_SIDE} or more"
    else:
        try:
            return load_lpips(net, path)
        except BackboneError as error:
            reason = str(error)
    if os.environ.get("RANK", "0") == "0":
        print_warning(f"LPIPS of held-out images is left out: {reason}")
    return None
