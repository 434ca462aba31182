"""The benchmark on tiny networks: turns, ratios, and what it leaves as it was."""

import json
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from codec.autoencoder import LatentAutoencoder
from codec.errors import LatentCodecError
from eval import benchmark
from eval.benchmark import Benchmark, Contestant, Timing, benchmark_table, rivals, run_benchmark


def ours() -> nn.Module:
    return LatentAutoencoder(
        block_out_channels=(8, 8, 8, 16), encoder_layers=(0, 0, 1, 1), decoder_layers=(0, 0, 1, 1)
    )


def rival() -> nn.Module:
    model: nn.Module = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    return model


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settle on a dtype after one trial each."""
    monkeypatch.setattr(benchmark, "PICK_SECONDS", 0.001)


def test_two_networks_are_timed(quick: None) -> None:
    threads = torch.get_num_threads()
    messages: list[str] = []
    found = run_benchmark(
        [Contestant("ours", ours), Contestant("rival", rival)],
        size=64,
        runs=2,
        threads=1,
        report=messages.append,
    )
    assert [timing.name for timing in found.timings] == ["ours", "rival"]
    assert all(timing.encode_ms > 0 and timing.decode_ms > 0 for timing in found.timings)
    assert found.timings[0].parameters == sum(p.numel() for p in ours().parameters())
    assert found.timings[0].layout.split()[0] in ("float32", "bfloat16")
    assert messages[-1] == "round 2 of 2"
    assert torch.get_num_threads() == threads
    content = json.loads(found.to_json())
    assert content["ratios"][0]["rival"] == "rival"
    assert benchmark_table(found).row_count == 2


def test_contestants_take_turns(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    timed: Callable[..., tuple[float, float]] = benchmark._round_trip

    def note(runner: benchmark._Runner) -> tuple[float, float]:
        order.append(runner.name)
        return timed(runner)

    monkeypatch.setattr(benchmark, "_round_trip", note)
    run_benchmark([Contestant("a", ours), Contestant("b", ours)], size=64, runs=2)
    assert [name for name in order if name] == ["a", "b"] * 3  # once to warm up


def test_ratios_say_how_many_times_faster_the_first_is() -> None:
    timings = (Timing("ours", 1, "", 10.0, 30.0), Timing("rival", 1, "", 200.0, 200.0))
    (ratio,) = Benchmark(64, 1, 1, 1, "cpu", timings).ratios()
    assert (ratio.encode, ratio.decode, ratio.round_trip) == (20.0, 200 / 30, 10.0)


def test_rivals_are_the_networks_that_people_know() -> None:
    assert [contestant.name for contestant in rivals()] == ["AutoencoderKL (SD)", "AutoencoderTiny"]
    with torch.device("meta"):
        counts = [sum(p.numel() for p in c.build().parameters()) for c in rivals()]
    assert counts == [83_653_863, 2_445_063]


@pytest.mark.parametrize("wrong", [{"size": 100}, {"runs": 0}, {"batch": 0}, {"threads": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(LatentCodecError, match="expected positive numbers and a size"):
        run_benchmark([Contestant("ours", ours)], **{"size": 64, **wrong})  # type: ignore[arg-type]
