"""From noise to latents: diffusers' samplers, guidance, and a seed for every image.

Noise comes from a CPU generator of each image's own seed, and none is drawn afterwards: the same
seed gives the same image at any batch size and on any device, up to rounding.

Legend: B images, C channels, h w latent grid.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from codec.prior.denoiser import Condition, no_condition, predict
from codec.prior.directory import PriorError

Sampler = Literal["auto", "ddim", "dpm++", "euler", "unipc"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)

# Called after each step with the latents and the number of the step; returns latents to go on with.
AfterStep = Callable[[Tensor, int], Tensor]


def seeded_noise(seeds: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Returns standard normal noise, float32 (B, *shape), each image from its own seed."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def make_sampler(scheduler: Any, name: Sampler = "auto") -> Any:
    """Returns one of diffusers' samplers for the process of a prior's own scheduler.

    Args:
        scheduler: The prior's: FlowMatchEulerDiscreteScheduler or DDIMScheduler.
        name: "auto" for the prior's own.

    Raises:
        PriorError: That sampler does not go with the prior's objective.
    """
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if name == "auto":
        return type(scheduler).from_config(scheduler.config)
    if is_flow:
        flow = {
            "num_train_timesteps": scheduler.config.num_train_timesteps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": scheduler.config.shift,
        }
        if name == "euler":
            return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        if name == "dpm++":
            return DPMSolverMultistepScheduler(**flow)
        if name == "unipc":
            return UniPCMultistepScheduler(**flow)
        raise PriorError(
            f"found sampler {name} for a prior of objective flow, expected euler, dpm++ or unipc"
        )
    classes = {
        "ddim": DDIMScheduler,
        "dpm++": DPMSolverMultistepScheduler,
        "euler": EulerDiscreteScheduler,
        "unipc": UniPCMultistepScheduler,
    }
    if name not in classes:
        raise PriorError(f"found sampler {name!r}, expected one of {', '.join(SAMPLERS)}")
    return classes[name].from_config(scheduler.config)


@torch.no_grad()
def denoise(
    denoiser: Any,
    scheduler: Any,
    noise: Tensor,
    condition: Condition,
    *,
    steps: int,
    guidance: float = 1.0,
    start: "Start | None" = None,
    after_step: AfterStep | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Returns scaled latents, float32 (B, C, h, w).

    Args:
        denoiser: Of diffusers.
        scheduler: What `make_sampler` returned; its state is set anew.
        noise: float32 (B, C, h, w), standard normal, on the denoiser's device.
        condition: Of each image.
        steps: Of the sampler, for the whole way from noise.
        guidance: How far to go from "no class" to the class and beyond; 1 for the class alone.
        start: Latents to start from in the middle of the way; None for noise.
        after_step: May change the latents after each step.
        advance: Is called after each step.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    times, first = scheduler.timesteps, 0
    if start is None:
        latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        first = len(times) - min(len(times), max(1, round(len(times) * start.strength)))
        latents = add_noise(scheduler, start.latents, noise, times[first])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    dtype = next(denoiser.parameters()).dtype
    for number, time in enumerate(times[first:], start=first):
        x = latents
        if hasattr(scheduler, "scale_model_input"):
            x = scheduler.scale_model_input(latents, time)
        prediction = guided(denoiser, x.to(dtype), time, condition, guidance).float()
        latents = scheduler.step(prediction, time, latents, return_dict=False)[0]
        if after_step is not None:
            latents = after_step(latents, number)
        advance()
    return latents


class Start:
    """Latents to start from in the middle of the way.

    Attributes:
        latents: float32 (B, C, h, w), scaled.
        strength: Share of the way that is gone again, above 0 and at most 1.
    """

    def __init__(self, latents: Tensor, strength: float) -> None:
        if not 0 < strength <= 1:
            raise PriorError(
                f"found strength {strength:g}, expected a number above 0 and at most 1"
            )
        self.latents, self.strength = latents, strength


def add_noise(scheduler: Any, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Returns latents as noisy as the scheduler has them at one of its times."""
    times = time.reshape(1).expand(len(latents))
    if hasattr(scheduler, "scale_noise"):
        noisy: Tensor = scheduler.scale_noise(latents, times, noise)
    else:
        noisy = scheduler.add_noise(latents, noise, times)
    return noisy


def guided(
    denoiser: Any, noisy: Tensor, time: Tensor, condition: Condition, guidance: float
) -> Tensor:
    """Returns what a denoiser says under classifier-free guidance (arXiv:2207.12598).

    Both passes go through the network together.
    """
    count = len(noisy)
    if guidance == 1.0:
        return predict(denoiser, noisy, time.expand(count), condition)
    both = no_condition(denoiser, condition).join(condition)
    without, with_ = predict(
        denoiser, torch.cat([noisy, noisy]), time.expand(2 * count), both
    ).chunk(2)
    return without + guidance * (with_ - without)


def slerp(first: Tensor, second: Tensor, shares: Sequence[float]) -> Tensor:
    """Returns tensors on the great circle between two of one shape, (len(shares), ...).

    Between two draws of noise every point is as likely as they are; on the line between them it
    would be too small (White, arXiv:1609.04468).
    """
    a, b = first.double().flatten(), second.double().flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    rows = []
    for share in shares:
        if torch.sin(angle) < 1e-6:  # parallel: the line is the circle
            rows.append(torch.lerp(a, b, share))
        else:
            left, right = torch.sin((1 - share) * angle), torch.sin(share * angle)
            rows.append((left * a + right * b) / torch.sin(angle))
    return torch.stack(rows).reshape(len(shares), *first.shape).to(first.dtype)
