"""How fast the network is beside diffusers' autoencoders, each in its best dtype and memory format.

Only the networks are timed: no file, no entropy coder, and random weights for the two rivals, since
weights do not change the speed. Runs are interleaved, so that a busy or a throttled machine slows
every contestant alike, and medians are compared.

Shapes: B batch, H W pixels.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from rich import box
from rich.table import Table
from torch import Tensor, nn

from codec.backbone import decode_raw, encode_raw
from codec.errors import LatentCodecError

PICK_SIZE = 256  # dtype and format are picked on a small image: a full SD round trip takes seconds
PICK_SECONDS = 0.2  # quick networks are measured several times, until this has passed

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Contestant:
    """An autoencoder with diffusers' `encode` and `decode`, built when its turn comes."""

    name: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a network and its input lie in memory."""

    dtype: torch.dtype
    memory_format: torch.memory_format

    def __str__(self) -> str:
        return f"{_word(self.dtype)} {_word(self.memory_format).removesuffix('_format')}"


@dataclass(frozen=True, slots=True)
class Timing:
    """One contestant's result.

    Attributes:
        name: the contestant.
        parameters: number of parameters.
        layout: dtype and memory format that were quickest.
        encode_ms: median milliseconds to encode the batch.
        decode_ms: median milliseconds to decode the batch.
    """

    name: str
    parameters: int
    layout: str
    encode_ms: float
    decode_ms: float

    @property
    def round_trip_ms(self) -> float:
        """Milliseconds to encode and decode."""
        return self.encode_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster than a rival the first contestant is."""

    rival: str
    encode: float
    decode: float
    round_trip: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A finished benchmark; the first timing is ours."""

    size: int
    batch: int
    runs: int
    threads: int
    device: str
    timings: tuple[Timing, ...]

    def to_json(self) -> str:
        """Return the benchmark with its ratios as JSON."""
        content = asdict(self) | {"ratios": [asdict(ratio) for ratio in self.ratios()]}
        content["versions"] = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def ratios(self) -> tuple[Ratio, ...]:
        """Compare the first contestant with each of the others."""
        ours, *rivals = self.timings
        return tuple(
            Ratio(
                rival=rival.name,
                encode=rival.encode_ms / ours.encode_ms,
                decode=rival.decode_ms / ours.decode_ms,
                round_trip=rival.round_trip_ms / ours.round_trip_ms,
            )
            for rival in rivals
        )


@dataclass(slots=True)
class _Runner:
    """A contestant that is loaded, laid out and ready to be timed."""

    name: str
    model: nn.Module
    layout: Layout
    images: Tensor
    latents: Tensor


def rivals() -> tuple[Contestant, ...]:
    """Return Stable Diffusion's autoencoder (its configuration) and diffusers' tiny one."""
    blocks = 4
    return (
        Contestant(
            "AutoencoderKL (SD)",
            lambda: AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * blocks,
                up_block_types=("UpDecoderBlock2D",) * blocks,
            ),
        ),
        Contestant("AutoencoderTiny", AutoencoderTiny),
    )


def run_benchmark(
    contestants: Sequence[Contestant],
    *,
    size: int = 512,
    batch: int = 1,
    runs: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    report: Report = lambda message: None,
) -> Benchmark:
    """Time encoding and decoding of random images, contestants taking turns.

    Args:
        contestants: ours first.
        size: H and W in pixels; a multiple of every contestant's factor.
        batch: B.
        runs: timed rounds, after one to warm up.
        threads: processor threads; torch's choice when None.
        device: where to run.
        report: is told what happens, for people.

    Raises:
        LatentCodecError: a number is out of range, or a network does not take images of this size.
    """
    if size < 8 or size % 8 or batch < 1 or runs < 1 or (threads is not None and threads < 1):
        raise LatentCodecError(
            f"found size {size}, batch {batch}, {runs} runs and {threads} threads, expected "
            "positive numbers and a size that is a multiple of 8"
        )
    with num_threads(threads), torch.inference_mode():
        runners = [_prepare(c, size, batch, torch.device(device), report) for c in contestants]
        rounds = []
        for index in range(runs + 1):
            report(f"round {index} of {runs}" if index else "warming up")
            rounds.append([_round_trip(runner) for runner in runners])
        timings = tuple(
            _timing(runner, [times[position] for times in rounds[1:]])
            for position, runner in enumerate(runners)
        )
        return Benchmark(size, batch, runs, torch.get_num_threads(), device, timings)


def benchmark_table(benchmark: Benchmark) -> Table:
    """Lay the timings out for a terminal."""
    b = benchmark
    table = Table(
        title=f"{b.batch} x {b.size}x{b.size} on {b.device}, {b.threads} threads, "
        f"medians of {b.runs}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("network", overflow="fold")
    for title in ("parameters", "dtype, format", "encode ms", "decode ms", "both ms"):
        table.add_column(title, justify="right")
    for timing in b.timings:
        table.add_row(
            timing.name,
            f"{timing.parameters / 1e6:.2f} M",
            timing.layout,
            f"{timing.encode_ms:.1f}",
            f"{timing.decode_ms:.1f}",
            f"{timing.round_trip_ms:.1f}",
        )
    return table


def _prepare(
    contestant: Contestant, size: int, batch: int, device: torch.device, report: Report
) -> _Runner:
    """Build a network in the layout that suits it best on this device."""
    report(f"choosing dtype and memory format of {contestant.name}")
    model = contestant.build().to(device).eval()
    small = torch.rand(1, 3, *(min(size, PICK_SIZE),) * 2, device=device) * 2 - 1
    seconds = {layout: _trial(model, small, layout) for layout in _layouts(device)}
    best = min(seconds, key=lambda layout: seconds[layout])
    images = _lay_out(model, torch.rand(batch, 3, size, size, device=device) * 2 - 1, best)
    return _Runner(contestant.name, model, best, images, encode_raw(model, images))


def _layouts(device: torch.device) -> list[Layout]:
    """Return what is worth trying on a device, by kind."""
    dtypes = [torch.float32, torch.bfloat16]
    if device.type != "cpu":  # half precision is slow on processors
        dtypes.append(torch.float16)
    formats = (torch.contiguous_format, torch.channels_last)
    return [Layout(dtype, memory_format) for dtype, memory_format in product(dtypes, formats)]


def _lay_out(model: nn.Module, images: Tensor, layout: Layout) -> Tensor:
    """Bring a network into a layout, and return the images in the same one."""
    # Past diffusers' own `to`, which warns at each change of dtype: only speed is at stake here.
    nn.Module.to(model, dtype=layout.dtype)
    nn.Module.to(model, memory_format=layout.memory_format)
    return images.to(dtype=layout.dtype, memory_format=layout.memory_format)


def _trial(model: nn.Module, images: Tensor, layout: Layout) -> float:
    """Return the best round trip in seconds on a small image."""
    images = _lay_out(model, images, layout)
    corner = images[..., :64, :64].contiguous(memory_format=layout.memory_format)
    decode_raw(model, encode_raw(model, corner))  # first calls allocate and choose kernels
    runner = _Runner("", model, layout, images, encode_raw(model, images))
    trials: list[float] = []
    while sum(trials) < PICK_SECONDS:
        trials.append(sum(_round_trip(runner)))
    return min(trials)


def _round_trip(runner: _Runner) -> tuple[float, float]:
    """Return the seconds of one encoding and of one decoding."""
    encode_s = _seconds(lambda: encode_raw(runner.model, runner.images), runner.images.device)
    decode_s = _seconds(lambda: decode_raw(runner.model, runner.latents), runner.images.device)
    return encode_s, decode_s


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    finish(device)
    start = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for an accelerator, which runs behind the Python code."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _timing(runner: _Runner, times: Sequence[tuple[float, float]]) -> Timing:
    return Timing(
        name=runner.name,
        parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
        layout=str(runner.layout),
        encode_ms=1000 * statistics.median(encode_s for encode_s, _ in times),
        decode_ms=1000 * statistics.median(decode_s for _, decode_s in times),
    )


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Use so many threads, and put the number back: it belongs to the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _word(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")
