"""From a trained twin to the integer coder: rounded weights, and tables counted on what they do."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import quantizer
from codec.entropy.context_coder import ContextCoder
from codec.entropy.context_network import ContextNetwork
from codec.entropy.context_weights import (
    KINDS,
    STEP_BITS,
    VALUE_BITS,
    WEIGHT_BITS,
    KindWeights,
)
from codec.entropy.fit_tables import ResidualCounts
from train.entropy.model import ContextModel, KindNetwork

_WEIGHT_LIMIT = (1 << 15) - 1
_EXPECTED = math.log2(2 * math.log(2))
"""log2 of a logistic distribution's mean absolute value over its width."""


def integer_network(model: ContextModel) -> ContextNetwork:
    """The twin's weights in fixed point."""
    deviations = np.rint(model.deviations.double().cpu().numpy() * (1 << STEP_BITS))
    weights = tuple(_kind_weights(model.networks[kind]) for kind in KINDS)
    return ContextNetwork(np.maximum(deviations, 1).astype(np.int64), weights)


def fit_coder(
    model: ContextModel, latents: Sequence[NDArray[np.float32]], steps: Sequence[int]
) -> ContextCoder:
    """The integer coder of a twin; its tables are counted on latents at several steps.

    Args:
        model: the trained twin.
        latents: raw latents (C, h, w) of training images.
        steps: in units of 2**-16, log-spaced over the range in use; each image has one of them.
    """
    network, counts = integer_network(model), ResidualCounts()
    coder = ContextCoder(network, counts.chooser)
    for number, image in enumerate(latents):
        step = steps[number % len(steps)]
        for choice, symbols in coder.choices([quantizer.quantize(image, step)], step):
            counts.count(choice.flat(), symbols.ravel())
    return ContextCoder(network, counts.tables())


def _kind_weights(net: KindNetwork) -> KindWeights:
    output = torch.stack([net.output[:, 0], net.output[:, 1] / math.log(2)], dim=1)
    bias = torch.stack(
        [net.output_bias[:, 0], net.output_bias[:, 1] / math.log(2) + _EXPECTED], dim=1
    )
    return KindWeights(
        first=_weights(net.first.weight),
        first_bias=_biases(net.first.bias + net.level_bias),
        second=_weights(net.second.weight),
        second_bias=_biases(net.second.bias)[:, None],
        head=_weights(net.head.weight),
        head_bias=_biases(net.head.bias)[:, None],
        cross=_weights(net.cross * net.earlier),
        output=_weights(output),
        output_bias=_biases(bias),
        linear=_weights(net.linear),
        linear_cross=_weights(net.linear_cross * net.earlier),
    )


def _weights(values: Tensor) -> Tensor:
    rounded = torch.round(values.detach().double().cpu() * (1 << WEIGHT_BITS))
    return rounded.clamp(-_WEIGHT_LIMIT, _WEIGHT_LIMIT).to(torch.int32)


def _biases(values: Tensor) -> Tensor:
    scaled = values.detach().double().cpu() * (1 << (WEIGHT_BITS + VALUE_BITS))
    return torch.round(scaled).to(torch.int32)
