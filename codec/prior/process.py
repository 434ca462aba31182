"""The forward process of each objective: how noise is mixed in, and what is predicted from it.

flow: x_t = (1 - s) x + s e with s from 0 to 1, predicted: e - x (rectified flow, Liu et al.,
arXiv:2209.03003). epsilon and v_prediction: x_t = sqrt(a_t) x + sqrt(1 - a_t) e over a discrete
time (Ho et al., arXiv:2006.11239), predicted: e, or sqrt(a_t) e - sqrt(1 - a_t) x (Salimans and Ho,
arXiv:2202.00512). Times go from 0 to 1000 in all of them.

Legend: B images.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

TIMES = 1000

Objective = Literal["flow", "epsilon", "v_prediction"]


@dataclass(frozen=True, slots=True)
class Process:
    """The forward process of one objective.

    Attributes:
        objective: What is predicted.
        alphas: (1000,) float64, a_t of epsilon and v_prediction; empty for flow.
    """

    objective: Objective
    alphas: Tensor

    @classmethod
    def of(
        cls,
        objective: Objective,
        noise_schedule: str = "scaled_linear",
        zero_terminal_snr: bool = False,
    ) -> "Process":
        """Makes the process with diffusers' own schedule of betas."""
        if objective == "flow":
            return cls(objective, torch.empty(0, dtype=torch.float64))
        scheduler = training_scheduler(objective, noise_schedule, zero_terminal_snr)
        return cls(objective, scheduler.alphas_cumprod.double())

    def times(self, places: Tensor) -> Tensor:
        """Returns the times, float32 (B,), of places in [0, 1); whole numbers but for flow."""
        if self.objective == "flow":
            return (places * TIMES).float()
        return (places * TIMES).floor().clamp(0, TIMES - 1).float()

    def coefficients(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shares of the image and of the noise at times (B,), float32 (B, 1, 1, 1)."""
        if self.objective == "flow":
            noise = times.double() / TIMES
            image = 1 - noise
        else:
            alphas = self.alphas.to(times.device)[times.long()]
            image, noise = alphas.sqrt(), (1 - alphas).sqrt()
        return image.float()[:, None, None, None], noise.float()[:, None, None, None]

    def mix(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Returns noisy latents of the same shape."""
        a, b = self.coefficients(times)
        return a * latents + b * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Returns what is to be predicted from the noisy latents."""
        if self.objective == "flow":
            return noise - latents
        if self.objective == "epsilon":
            return noise
        a, b = self.coefficients(times)
        return a * noise - b * latents

    def signal_to_noise(self, times: Tensor) -> Tensor:
        """Returns the ratio of the variances of image and noise at times (B,), float32 (B,)."""
        a, b = self.coefficients(times)
        return (a / b.clamp(min=1e-6)).square().flatten()

    def min_snr_weights(self, times: Tensor, gamma: float) -> Tensor:
        """Returns weights (B,) of Hang et al., arXiv:2303.09556: those of the image's own error.

        The squared error of the image weighs min(SNR, gamma); that of the noise is SNR times the
        image's, that of v SNR + 1 times.
        """
        ratio = self.signal_to_noise(times)
        bounded = ratio.clamp(max=gamma)
        return bounded / (ratio if self.objective == "epsilon" else ratio + 1)


def training_scheduler(objective: Objective, noise_schedule: str, zero_terminal_snr: bool) -> Any:
    """Returns diffusers' scheduler of the process, as a pipeline's directory holds it."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if objective == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule=noise_schedule,
        beta_start=0.00085 if noise_schedule == "scaled_linear" else 0.0001,
        beta_end=0.012 if noise_schedule == "scaled_linear" else 0.02,
        prediction_type=objective,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )
