"""Held-out figures of a diffusion prior: the error at each part of the time, and pictures.

Noise and times follow from the number of the image alone, so that two validations of a run, or of
two runs, can be compared. Legend: N images, C channels, h w latent grid, K parts of the time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from codec import Codec
from codec.images import Pixels, from_unit
from codec.prior.denoiser import Condition, num_classes_of, predict
from codec.prior.process import Process, training_scheduler
from codec.prior.sampling import denoise, seeded_noise
from eval.latents.pictures import tiled
from train.entropy.frozen import FrozenCodec
from train.held_out import held_out_files
from train.prior.embeddings import Embeddings
from train.prior.latents import PriorData, class_numbers, encode_squares
from train.prior.sections import PriorConfig
from train.prior.shard_latents import read_held_out_shards
from train.randomness import HELD_OUT, stream
from train.samples.sources import FileSource

METRIC = "val/loss"
BATCH = 32
PICTURES = 30
"""At most; as many of each class."""


class PriorValidation:
    """Measures a denoiser on held-out latents.

    Args:
        config: of the run.
        latents: float32 (N, C, h, w), scaled.
        condition: of each.
        process: of the objective.
        codec: decodes pictures.
    """

    def __init__(
        self,
        config: PriorConfig,
        latents: Tensor,
        condition: Condition,
        process: Process,
        codec: Codec,
    ) -> None:
        self.config = config
        self.latents = latents
        self.condition = condition
        self.process = process
        self.codec = codec

    @torch.no_grad()
    def measure(self, model: Any, accelerator: Accelerator) -> dict[str, float]:
        """Mean squared errors of what is predicted, not weighted, by logged name.

        `val/loss` over all times; `val/loss_time_00` and so on over each of K equal parts, from
        clean to noise. Every process measures its share.
        """
        bins = self.config.run.time_bins
        share = range(accelerator.process_index, len(self.latents), accelerator.num_processes)
        sums = torch.zeros(bins, dtype=torch.float64)
        for start in range(0, len(share), BATCH):
            numbers = list(share[start : start + BATCH])
            for place in range(bins):
                sums[place] += self._errors(model, accelerator, numbers, place).sum().cpu()
        total = torch.stack(gather_object([sums])).sum(0) / len(self.latents)
        figures = {f"val/loss_time_{place:02d}": float(total[place]) for place in range(bins)}
        return {METRIC: float(total.mean()), **figures}

    @torch.no_grad()
    def pictures(self, model: Any, accelerator: Accelerator) -> dict[str, Pixels]:
        """uint8 (H, W, 3) "samples", a row for each class; drawn by the main process."""
        if not accelerator.is_main_process or self.config.prior.condition == "embeddings":
            return {}
        count, device = num_classes_of(model), accelerator.device
        a_row = 4 if count is None else max(1, min(4, PICTURES // count))
        rows = 4 if count is None else min(count, PICTURES)
        labels = torch.arange(rows, device=device).repeat_interleave(a_row)
        objective = self.config.objective
        noise = seeded_noise(range(len(labels)), tuple(self.latents.shape[1:])).to(device)
        with accelerator.autocast():
            latents = denoise(
                model,
                training_scheduler(
                    objective.objective, objective.noise_schedule, objective.zero_terminal_snr
                ),
                noise,
                Condition(None if count is None else labels),
                steps=self.config.run.sample_steps,
                guidance=1.0 if count is None else self.config.run.sample_guidance,
            )
        pixels = [from_unit(one.float().cpu().numpy()) for one in self.codec.decode(latents)]
        return {"samples": tiled([pixels[i : i + a_row] for i in range(0, len(pixels), a_row)])}

    def _errors(
        self, model: Any, accelerator: Accelerator, numbers: Sequence[int], place: int
    ) -> Tensor:
        """Mean squared errors (B,) of images at one part of the time."""
        bins, device = self.config.run.time_bins, accelerator.device
        chosen = torch.tensor(numbers)
        latents = self.latents[chosen]
        places, noise = [], []
        for number in numbers:
            seed = stream(0, number * bins + place, HELD_OUT)
            generator = torch.Generator().manual_seed(seed)
            within = torch.rand((), generator=generator, dtype=torch.float64)
            places.append((place + within) / bins)
            noise.append(torch.randn(latents.shape[1:], generator=generator))
        times = self.process.times(torch.stack(places)).to(device)
        x, e = latents.to(device), torch.stack(noise).to(device)
        condition = self.condition.chosen(chosen).to(device)
        with accelerator.autocast():
            found = predict(model, self.process.mix(x, e, times), times, condition)
        error: Tensor = found.float() - self.process.target(x, e, times)
        return error.square().mean((1, 2, 3)).double()


def make_prior_validation(
    config: PriorConfig,
    frozen: FrozenCodec,
    data: PriorData,
    process: Process,
    accelerator: Accelerator,
) -> PriorValidation | None:
    """The held-out latents that the configuration names, or None.

    Raises:
        DataError: there is none, or one is of a class that is not trained on.
    """
    run = config.run
    if run.validation_shards is not None:
        latents, condition = read_held_out_shards(config, frozen, data)
        return PriorValidation(config, latents, condition, process, frozen.codec)
    if run.validation_folder is None:
        return None
    files = held_out_files(run.validation_folder, None, run.validation_images)
    labels = class_numbers(files, data.class_names)
    source = FileSource(f"held-out images of {run.validation_folder}", files)
    encoded = encode_squares(frozen, source, config.data, accelerator, flip=False)
    kept = [i for i, path in enumerate(files) if path.as_posix() not in encoded.unreadable]
    texts = None
    if config.data.embeddings is not None:
        embeddings = Embeddings.read(config.data.embeddings)
        texts = embeddings.of(encoded.keys, [run.validation_folder])
    condition = Condition(labels[torch.tensor(kept)] if data.class_names else None, texts)
    return PriorValidation(config, encoded.latents, condition, process, frozen.codec)
