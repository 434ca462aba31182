"""From a trained twin of codes to the integer coder: rounded weights, and counted tables."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codec.entropy.fit_indices import fit_tables, to_fixed
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_network import (
    KINDS,
    VALUE_BITS,
    VALUE_LIMIT,
    WEIGHT_BITS,
    CodebookWeights,
    IndexKindWeights,
    logistic_frequencies,
)
from codec.entropy.index_tables import Indices
from train.entropy.index_model import CodebookModel, IndexModel, KindNetwork

_WEIGHT_LIMIT = (1 << 15) - 1


def integer_index_coder(model: IndexModel, images: Sequence[Indices]) -> IndexCoder:
    """The integer coder of a twin; its tables are counted on the indices of training images."""
    codebooks = tuple(map(_codebook, model.codebooks))
    return fit_tables(IndexCoder(codebooks, logistic_frequencies()), images)


def _codebook(book: CodebookModel) -> CodebookWeights:
    values = _rounded(book.values * (1 << VALUE_BITS)).clamp(-VALUE_LIMIT, VALUE_LIMIT)
    return CodebookWeights(
        codes=book.codes.cpu().numpy(),
        values=np.ascontiguousarray(values.T.numpy()),
        nodes=_weights(book.nodes).numpy(),
        node_bias=to_fixed(book.node_bias.detach().double().cpu().numpy()[:, 0]),
        kinds=tuple(_kind_weights(book.networks[kind]) for kind in KINDS),
    )


def _kind_weights(net: KindNetwork) -> IndexKindWeights:
    first = net.first.weight if net.num_inputs else net.first.weight[:, :0]
    return IndexKindWeights(
        first=_weights(first),
        first_bias=_biases(net.first.bias + net.level_bias),
        second=_weights(net.second.weight),
        second_bias=_biases(net.second.bias)[:, None],
    )


def _weights(values: Tensor) -> Tensor:
    return _rounded(values * (1 << WEIGHT_BITS)).clamp(-_WEIGHT_LIMIT, _WEIGHT_LIMIT)


def _biases(values: Tensor) -> Tensor:
    return torch.from_numpy(to_fixed(values.detach().double().cpu().numpy()))


def _rounded(values: Tensor) -> Tensor:
    return torch.round(values.detach().double().cpu()).to(torch.int32)
