"""LPIPS(squeeze) with random weights, for tests that ask how a backbone is used."""

import torch
import torchvision

from eval.lpips import PerceptualDistance


def random_backbone() -> PerceptualDistance:
    """The network with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = torchvision.models.squeezenet1_1(weights=None).state_dict()
    return PerceptualDistance("squeeze", tensors, "test")
