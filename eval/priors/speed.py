"""How fast a prior makes pictures beside DiTPipeline with Stable Diffusion's autoencoder.

Everything from class numbers to 8-bit pixels is timed, for the same numbers of images and steps,
the same guidance and the same dtype. Both sides run one transformer, so that what differs is the
autoencoder that decodes, and what the pipelines do between. Sides take turns, so that a busy
machine slows them alike, and medians are compared.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiTPipeline
from torch import nn

from codec.prior.directory import PriorError
from codec.prior.opening import DiffusionPrior
from codec.prior.pipeline import LatentPriorPipeline
from eval.benchmark import finish, num_threads
from eval.priors import rival
from eval.priors.speed_report import SideTiming, SpeedReport
from eval.rate_distortion import command_line, package_versions

_TRIAL_CELLS = 16  # side of the latents on which the rival's memory format is chosen

Report = Callable[[str], None]


class _Side:
    """A way to make pictures, with a clock at its decoder."""

    def __init__(
        self, name: str, denoiser: Any, autoencoder: Any, shape: Any, make: Callable[[], None]
    ) -> None:
        self.name = name
        self.denoiser = f"{_described(denoiser)}, {rival.macs(denoiser, shape) / 1e9:.2f} GMAC"
        self.decoder = f"{type(autoencoder).__name__}, {_millions(autoencoder.decoder)}"
        self._autoencoder = autoencoder
        self._device = next(autoencoder.parameters()).device
        self._make = make
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        """Make pictures once and note the seconds, of all and of the decoder."""
        inside: list[float] = []
        decoder = self._autoencoder.decoder
        hooks = (
            decoder.register_forward_pre_hook(lambda *_: inside.append(-self._now())),
            decoder.register_forward_hook(lambda *_: inside.append(self._now())),
        )
        start = self._now()
        self._make()
        self.times.append((self._now() - start, sum(inside)))
        for hook in hooks:
            hook.remove()

    def timing(self) -> SideTiming:
        """Return the medians of all rounds but the first, which warms up."""
        totals, decoders = zip(*self.times[1:], strict=True)
        return SideTiming(
            self.name,
            self.denoiser,
            self.decoder,
            statistics.median(totals),
            statistics.median(decoders),
        )

    def _now(self) -> float:
        finish(self._device)
        return time.perf_counter()


def measure_speed(
    prior: Any,
    *,
    number: int = 16,
    steps: int = 25,
    guidance: float = 3.0,
    runs: int = 3,
    threads: int | None = None,
    report: Report = lambda message: None,
) -> SpeedReport:
    """Time a prior beside DiTPipeline.

    Args:
        prior: what `codec.prior.open_prior` returned.
        number: images at once.
        steps: of the samplers.
        guidance: 1 for none.
        runs: timed rounds, after one to warm up.
        threads: of the processor; torch's choice when None.
        report: is told what happens, for people.

    Raises:
        PriorError: the prior is no diffusion prior over four latent channels.
    """
    _check(prior)
    with num_threads(threads):
        sides = _sides(prior, number, steps, guidance)
        for index in range(runs + 1):
            for side in sides:
                report(f"{side.name}: {f'round {index} of {runs}' if index else 'warming up'}")
                side.run()
        timings = [side.timing() for side in sides]
        return SpeedReport(
            prior=prior.info.name,
            number=number,
            size=prior.info.size,
            steps=steps,
            guidance=guidance,
            runs=runs,
            threads=torch.get_num_threads(),
            device=str(prior.codec.device),
            dtype=str(prior.codec.dtype).removeprefix("torch."),
            prior_timing=timings[0],
            ours=timings[-2],
            theirs=timings[-1],
            versions=package_versions(),
            command=command_line(),
        )


def _check(prior: Any) -> None:
    if prior.info.kind != "diffusion":
        raise PriorError(
            f"found {prior.info.name}, a prior of {prior.info.kind}, expected a diffusion prior to "
            "compare with DiTPipeline"
        )
    channels = prior.pipeline.latent_shape[0]
    if channels != 4:
        raise PriorError(
            f"found latents of {channels} channels for {prior.info.name}, expected 4, which Stable "
            "Diffusion's autoencoder decodes"
        )


def _sides(prior: DiffusionPrior, number: int, steps: int, guidance: float) -> Sequence[_Side]:
    """Return the prior, our side if that is another, and DiTPipeline."""
    shape, denoiser = prior.pipeline.latent_shape, prior.pipeline.denoiser
    classes = len(prior.info.class_names)
    labels = [index % classes if classes else None for index in range(number)]

    def ours(name: str, one: DiffusionPrior) -> _Side:
        def make() -> None:
            for _ in one.sample(
                labels, range(number), guidance=guidance, steps=steps, batch_size=number
            ):
                pass

        return _Side(name, one.pipeline.denoiser, one.pipeline.vae, shape, make)

    sides = [ours("the prior", prior)]
    if type(denoiser).__name__ != "DiTTransformer2DModel":
        reference = next(denoiser.parameters())
        denoiser = rival.stand_in(rival.macs(denoiser, shape), shape, classes or None)
        nn.Module.to(denoiser, reference.device, reference.dtype)
        pipeline = LatentPriorPipeline(
            denoiser,
            prior.pipeline.scheduler,
            prior.pipeline.vae,
            class_names=prior.info.class_names,
            latent_channels=shape[0],
        )
        stand_in = DiffusionPrior(prior.info, pipeline, prior.codec)
        sides.append(ours("a transformer, our decoder", stand_in))
    theirs = _rival_pipeline(denoiser, rival.sd_autoencoder())
    rows = [label or 0 for label in labels]

    def make() -> None:
        with torch.random.fork_rng():
            theirs(rows, guidance_scale=guidance, num_inference_steps=steps, output_type="pil")

    sides.append(_Side("DiTPipeline", theirs.transformer, theirs.vae, shape, make))
    return sides


def _rival_pipeline(transformer: Any, autoencoder: nn.Module) -> DiTPipeline:
    """Return the rival where and in what the transformer is, in its better memory format."""
    reference = next(transformer.parameters())
    pipeline = rival.dit_pipeline(transformer, autoencoder)
    for part in (pipeline.transformer, pipeline.vae):
        # Past diffusers' own `to`, which warns at each change of dtype.
        nn.Module.to(part, reference.device, reference.dtype)
        part.eval().requires_grad_(False)
    small = torch.randn(1, 4, _TRIAL_CELLS, _TRIAL_CELLS).to(reference)
    seconds = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        nn.Module.to(pipeline.vae, memory_format=memory_format)
        trials = []
        for _ in range(3):
            finish(reference.device)
            start = time.perf_counter()
            pipeline.vae.decode(small)
            finish(reference.device)
            trials.append(time.perf_counter() - start)
        seconds[memory_format] = min(trials)
    nn.Module.to(pipeline.vae, memory_format=min(seconds, key=lambda one: seconds[one]))
    return pipeline


def _described(model: nn.Module) -> str:
    return f"{type(model).__name__}, {_millions(model)}"


def _millions(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M"
