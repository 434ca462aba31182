"""The layers in float64 against plain int64 arithmetic, at the edge of what is let in."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec.entropy.context_weights import LEVELS, KindWeights
from codec.entropy.exact_layers import ExactLayers
from codec.entropy.tables import TablesError

CHANNELS, NEIGHBOURS, UNITS, PER_HEAD = 3, 12, 33, 5
INPUTS = CHANNELS * NEIGHBOURS + 1


def weights(seed: int, largest: int) -> KindWeights:
    random = np.random.default_rng(seed)

    def draw(*shape: int, limit: int = largest) -> torch.Tensor:
        # Most at the limit: sums of many like terms are where rounding would show.
        values = random.choice([-limit, limit - 1, limit], shape)
        return torch.from_numpy(values.astype(np.int32))

    below = torch.tril(torch.ones(CHANNELS, CHANNELS, dtype=torch.int32), diagonal=-1)[:, None]
    return KindWeights(
        first=draw(UNITS, INPUTS),
        first_bias=draw(LEVELS, UNITS, limit=1 << 20),
        second=draw(UNITS, UNITS),
        second_bias=draw(UNITS, 1, limit=1 << 20),
        head=draw(CHANNELS * PER_HEAD, UNITS),
        head_bias=draw(CHANNELS * PER_HEAD, 1, limit=1 << 20),
        cross=draw(CHANNELS, PER_HEAD, CHANNELS) * below,
        output=draw(CHANNELS, 2, PER_HEAD),
        output_bias=draw(CHANNELS, 2, 1, limit=1 << 20),
        linear=draw(CHANNELS, INPUTS),
        linear_cross=draw(CHANNELS, 1, CHANNELS) * below,
    )


def integers(
    net: KindWeights, level: int, inputs: NDArray[np.int64], values: NDArray[np.int64]
) -> NDArray[np.int64]:
    """FORMAT-CONTEXT.md's sums: inputs (K * C + 1, n), neighbour after neighbour; values (C, n)."""
    w = {name: getattr(net, name).numpy().astype(np.int64) for name in KindWeights.__slots__}

    def relu(sums: NDArray[np.int64]) -> NDArray[np.int64]:
        assert np.abs(sums).max() < 2**31
        return np.clip(sums >> 10, 0, 2047)

    a = relu(w["first"] @ inputs + w["first_bias"][level][:, None])
    b = relu(w["second"] @ a + w["second_bias"])
    outputs = []
    for c in range(CHANNELS):
        rows = slice(c * PER_HEAD, (c + 1) * PER_HEAD)
        head = w["head"][rows] @ b + w["head_bias"][rows]
        g = relu(head + w["cross"][c, :, :c] @ values[:c])
        o = w["output"][c] @ g + w["output_bias"][c]
        mean = w["linear"][c] @ inputs + (w["linear_cross"][c, :, :c] @ values[:c])[0] + o[0]
        outputs.append([mean >> 5, o[1] >> 12])
    return np.array(outputs).transpose(1, 0, 2)


@pytest.mark.parametrize("largest", [3, 900, 11_000])
@pytest.mark.parametrize("level", range(LEVELS))
def test_equal_to_integers(largest: int, level: int) -> None:
    random = np.random.default_rng(level)
    net = weights(level, largest)
    inputs = random.choice([-4095, 4094, 4095, 1, 0], (INPUTS, 1301))
    values = random.choice([-4095, 4095, 17], (CHANNELS, 1301))
    expected = integers(net, level, inputs, values)
    layers = ExactLayers.of(net)
    around = inputs[:-1].reshape(NEIGHBOURS, CHANNELS, -1).transpose(1, 0, 2)
    ours = np.concatenate([around.reshape(INPUTS - 1, -1), inputs[-1:]]).astype(np.float64)
    known = torch.from_numpy(values.astype(np.float64))
    together = layers.run(level, torch.from_numpy(ours), known[:-1]).numpy()
    np.testing.assert_array_equal(together.transpose(1, 0, 2), expected)
    hidden = layers.start(level, torch.from_numpy(ours))
    for c in range(CHANNELS):
        alone = layers.finish(hidden, c, known[:c]).numpy()
        np.testing.assert_array_equal(alone, expected[:, c])


def test_sums_beyond_32_bits_are_refused() -> None:
    with pytest.raises(TablesError, match="2\\*\\*31"):
        ExactLayers.of(weights(0, 15_000))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_equal_when_compiled(backend: str) -> None:
    layers = ExactLayers.of(weights(1, 900))
    inputs = torch.randint(-4095, 4096, (INPUTS, 128)).double()
    known = torch.randint(-4095, 4096, (CHANNELS - 1, 128)).double()

    def run(inputs: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return layers.run(1, inputs, known)

    compiled = torch.compile(run, backend=backend)
    torch.testing.assert_close(compiled(inputs, known), run(inputs, known), rtol=0, atol=0)
