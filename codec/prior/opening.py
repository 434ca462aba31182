"""open_prior: a prior of either kind with the codec that decodes it, behind one interface."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging

from codec.device import choose_device, choose_dtype
from codec.images import Pixels, from_unit
from codec.pipeline import Codec
from codec.prior.directory import PriorError, PriorInfo, find_prior, load_codec, read_prior
from codec.prior.pipeline import LatentPriorPipeline
from codec.prior.sampling import Sampler

if TYPE_CHECKING:
    from codec.prior.tokens import TokenPrior

STEPS, GUIDANCE, BATCH = 25, 3.0, 8


class DiffusionPrior:
    """A diffusion prior where it runs.

    Attributes:
        info: What prior.json says.
        pipeline: Of diffusers.
        codec: Decodes.
    """

    def __init__(self, info: PriorInfo, pipeline: LatentPriorPipeline, codec: Codec) -> None:
        self.info = info
        self.pipeline = pipeline
        self.codec = codec

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "DiffusionPrior":
        """Loads a directory; see `open_prior`."""
        info = read_prior(directory)
        chosen = choose_device(device)
        codec = load_codec(info, chosen, dtype)
        try:
            with _no_progress_bar():
                pipeline = LatentPriorPipeline.from_pretrained(
                    os.fspath(info.directory), use_safetensors=True, local_files_only=True
                )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise PriorError(
                f"found no usable pipeline in {info.directory} ({reason}); export the prior again"
            ) from error
        if pipeline.vae is None:
            pipeline.register_modules(vae=codec.autoencoder)
        denoiser = pipeline.denoiser
        torch.nn.Module.to(denoiser, chosen, choose_dtype(chosen, dtype))
        torch.nn.Module.to(denoiser, memory_format=torch.channels_last)
        denoiser.eval().requires_grad_(False)
        return cls(info, pipeline, codec)

    def sample(
        self,
        labels: Sequence[int | None],
        seeds: Sequence[int],
        *,
        guidance: float = GUIDANCE,
        steps: int = STEPS,
        batch_size: int = BATCH,
        sampler: Sampler = "auto",
        advance: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> Iterator[Pixels]:
        """Yields uint8 (H, W, 3) in order.

        Args:
            labels: A class number for each image; None for no class.
            seeds: As many.
            guidance: 1 for none.
            steps: Of the sampler.
            batch_size: Images that go through the network together.
            sampler: See `codec.prior.sampling.make_sampler`.
            advance: Is called after each step of each batch.
            settings: Further arguments of `LatentPriorPipeline`; of `noise`, `image` and
                `mask_image` each batch gets its part.

        Raises:
            PriorError: The arguments do not fit to the prior.
        """
        if len(labels) != len(seeds):
            raise PriorError(
                f"found {len(labels)} labels and {len(seeds)} seeds, expected as many of each"
            )
        by_image = {"noise", "image", "mask_image", "prompt_embeds"}
        for first in range(0, len(labels), batch_size):
            part = slice(first, first + batch_size)
            own = {
                name: value[part] if name in by_image and value is not None else value
                for name, value in settings.items()
            }
            (pictures,) = self.pipeline(
                list(labels[part]) if self.info.class_names else None,
                num_inference_steps=steps,
                guidance_scale=guidance,
                seeds=list(seeds[part]),
                sampler=sampler,
                output_type="pt",
                advance=advance,
                return_dict=False,
                **own,
            )
            for one in pictures:
                yield from_unit((2 * one - 1).cpu().numpy())


def open_prior(
    name_or_dir: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> "DiffusionPrior | TokenPrior":
    """Loads a prior and its codec.

    Args:
        name_or_dir: An embedded name or a prior's directory; None for the embedded default.
        device: See `codec.device`.
        dtype: Likewise.

    Raises:
        LatentCodecError: There is no such prior, it is damaged, or its codec is not at hand.
    """
    directory = find_prior(name_or_dir)
    if read_prior(directory).kind == "diffusion":
        return DiffusionPrior.from_pretrained(directory, device=device, dtype=dtype)
    from codec.prior.tokens import TokenPrior

    return TokenPrior.from_pretrained(directory, device=device, dtype=dtype)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """diffusers shows one while it loads components; ours take less than a second."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
