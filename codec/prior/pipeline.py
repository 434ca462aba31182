"""LatentPriorPipeline: generates images with a diffusion prior, as a pipeline of diffusers.

    pipe = LatentPriorPipeline.from_pretrained("my-prior")
    images = pipe(["dress", "hat"], seeds=[0, 1], guidance_scale=3.0).images

A saved pipeline is a standard directory: model_index.json, denoiser/, scheduler/, and vae/ if it
was given one. Without, the codec that prior.json names decodes.

Legend: B images, C channels, h w latent grid, H W pixels, f downscale.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from codec.backbone import decode_raw, downscale_factor, encode_raw
from codec.latents import Scaling
from codec.prior.denoiser import Condition, embedding_width_of, num_classes_of
from codec.prior.directory import PriorError
from codec.prior.sampling import Sampler, Start, add_noise, denoise, make_sampler, seeded_noise

Labels = Sequence[int | str | None] | Tensor


class LatentPriorPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A denoiser, its scheduler, and the autoencoder whose latents they make.

    Args:
        denoiser: UNet2DModel, DiTTransformer2DModel, or for texts UNet2DConditionModel or
            PixArtTransformer2DModel.
        scheduler: FlowMatchEulerDiscreteScheduler or DDIMScheduler; another of diffusers is taken
            as it is.
        vae: Any autoencoder of diffusers with the latents that the denoiser learned; None to get
            latents only, until one is set.
        class_names: Of the class numbers.
        latent_channels: C.
    """

    model_cpu_offload_seq = "denoiser->vae"
    _optional_components = ["vae"]  # noqa: RUF012 - diffusers adds it to a list

    def __init__(
        self,
        denoiser: Any,
        scheduler: Any,
        vae: Any = None,
        class_names: list[str] | tuple[str, ...] = (),
        latent_channels: int = 4,
    ) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, vae=vae)
        self.register_to_config(class_names=list(class_names), latent_channels=latent_channels)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_images: int = 1,
        *,
        prompt_embeds: Tensor | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        seeds: Sequence[int] | None = None,
        noise: Tensor | None = None,
        sampler: Sampler = "auto",
        image: Tensor | Sequence[PIL.Image.Image] | PIL.Image.Image | None = None,
        strength: float = 0.6,
        mask_image: Tensor | Sequence[PIL.Image.Image] | PIL.Image.Image | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        advance: Callable[[], None] = lambda: None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generates images.

        Args:
            class_labels: A number or name for each image; None, alone or among them, for no class.
            num_images: How many, where nothing else says so.
            prompt_embeds: (B, tokens, width) embeddings of texts, for a prior that was trained on
                such; zeros for no text.
            num_inference_steps: Of the sampler.
            guidance_scale: How far to go from "no class" to the class; 1 for none.
            seeds: One an image; by default 0, 1, 2 and so on. The same seed gives the same image,
                whatever else is in the batch.
            noise: float32 (B, C, h, w), standard normal, in place of seeds.
            sampler: Another than the prior's own; see `codec.prior.sampling.make_sampler`.
            image: What to start from: pictures or (B, 3, H, W) in [-1, 1].
            strength: With `image`: share of the way that is gone again, above 0 and at most 1.
            mask_image: With `image`: white, or 1 in (B, 1, H, W), where something new shall be.
                What is black stays as it is to the pixel.
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], or
                "latent" (B, C, h, w), scaled.
            return_dict: False for a tuple.
            advance: Is called after each step.

        Returns:
            `images`.

        Raises:
            PriorError: The arguments do not go together, or the prior cannot do that.
        """
        device = self._execution_device
        count = self._count(class_labels, prompt_embeds, seeds, noise, image, num_images)
        condition = self._condition(class_labels, prompt_embeds, count).to(device)
        if noise is None:
            noise = seeded_noise(range(count) if seeds is None else seeds, self.latent_shape)
        noise = noise.to(device, torch.float32)
        chosen = make_sampler(self.scheduler, sampler)
        start, known, mask = None, None, None
        if image is not None:
            pixels = self._pixels(image, count).to(device)
            known = self.encode(pixels)
            noise = _same_grid(noise, known)
            start = Start(known, 1.0 if mask_image is not None else strength)
        elif mask_image is not None:
            raise PriorError("found a mask without an image, expected the image that it belongs to")
        after_step = None
        if mask_image is not None:
            assert known is not None
            mask = self._mask(mask_image, count, *pixels.shape[-2:]).to(device)
            after_step = _keep(chosen, known, noise, _latent_mask(mask, known))
        latents = denoise(
            self.denoiser,
            chosen,
            noise,
            condition,
            steps=num_inference_steps,
            guidance=guidance_scale if _has_condition(condition) else 1.0,
            start=start,
            after_step=after_step,
            advance=advance,
        )
        if output_type == "latent":
            images: Any = latents
        else:
            decoded = self.decode(latents)
            if mask is not None:
                decoded = torch.where(mask > 0.5, decoded, pixels.float())
            images = VaeImageProcessor().postprocess(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Returns scaled latents, float32 (B, C, h, w), of images (B, 3, H, W) in [-1, 1]."""
        vae = self._vae()
        raw = encode_raw(vae, pixels.to(self._execution_device, vae.dtype)).float()
        return Scaling.of(vae.config).scale(raw)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Returns images, float32 (B, 3, H, W) in [-1, 1], of scaled latents (B, C, h, w)."""
        vae = self._vae()
        raw = Scaling.of(vae.config).unscale(latents.float()).to(vae.dtype)
        pixels: Tensor = decode_raw(vae, raw.contiguous(memory_format=torch.channels_last))
        return pixels.float().clamp(-1, 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the class numbers."""
        return tuple(self.config.class_names)

    def _vae(self) -> Any:
        if self.vae is None:
            raise PriorError(
                "found no autoencoder in this pipeline, expected one to decode with: set "
                "pipe.vae, use codec.prior.open_prior, or ask for output_type='latent'"
            )
        return self.vae

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that the denoiser was trained on."""
        channels = int(self.config.latent_channels)
        side = int(self.denoiser.config.sample_size)
        if "num_embeds_ada_norm" not in self.denoiser.config:  # a UNet's size counts patches
            side *= round((self.denoiser.config.in_channels / channels) ** 0.5)
        return channels, side, side

    @staticmethod
    def _count(labels: Any, embeds: Any, seeds: Any, noise: Any, image: Any, otherwise: int) -> int:
        """Returns B, on which everything that was given must agree."""
        is_batch = isinstance(image, Tensor | list | tuple)
        given = [
            len(values)
            for values in (labels, embeds, seeds, noise, image if is_batch else None)
            if values is not None
        ]
        if len(set(given)) > 1:
            raise PriorError(
                f"found {', '.join(map(str, given))} labels, embeddings, seeds, noises or images, "
                "expected as many of each"
            )
        if (given or [otherwise])[0] < 1:
            raise PriorError("found 0 images to generate, expected 1 or more")
        return (given or [otherwise])[0]

    def _condition(self, labels: Labels | None, embeds: Tensor | None, count: int) -> Condition:
        width, classes = embedding_width_of(self.denoiser), num_classes_of(self.denoiser)
        if width is not None:
            if embeds is None or embeds.ndim != 3 or embeds.shape[2] != width:
                found = "none" if embeds is None else f"embeddings of shape {tuple(embeds.shape)}"
                raise PriorError(f"found {found}, expected prompt_embeds (B, tokens, {width})")
            return Condition(embeddings=embeds.to(self.denoiser.dtype))
        if embeds is not None:
            raise PriorError("found prompt_embeds for a prior that was trained without texts")
        if classes is None:
            if labels is not None and any(label is not None for label in labels):
                raise PriorError("found class labels for a prior that was trained without classes")
            return Condition()
        numbers = [self._number(label, classes) for label in labels or [None] * count]
        return Condition(torch.tensor(numbers))

    def _number(self, label: Any, classes: int) -> int:
        if label is None:
            return classes
        if isinstance(label, str):
            if label not in self.class_names:
                raise PriorError(
                    f"found class {label!r}, expected one of {', '.join(self.class_names)}"
                )
            return self.class_names.index(label)
        if not 0 <= int(label) < classes:
            raise PriorError(f"found class {int(label)}, expected 0 to {classes - 1}")
        return int(label)

    def _pixels(self, image: Any, count: int) -> Tensor:
        """Returns pictures as float32 (B, 3, H, W) in [-1, 1], cut to whole cells of latents."""
        if not isinstance(image, Tensor):
            images = list(image) if isinstance(image, list | tuple) else [image] * count
            arrays = [np.asarray(one.convert("RGB"), np.float32) / 127.5 - 1 for one in images]
            if len({array.shape for array in arrays}) > 1:
                raise PriorError("found images of several sizes, expected one size in a batch")
            image = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        factor = downscale_factor(self._vae())
        h, w = (side - side % factor for side in image.shape[-2:])
        cut: Tensor = image[..., :h, :w].float()
        return cut

    @staticmethod
    def _mask(mask: Any, count: int, height: int, width: int) -> Tensor:
        """Returns (B, 1, H, W), 1 where something new shall be."""
        if not isinstance(mask, Tensor):
            masks = list(mask) if isinstance(mask, list | tuple) else [mask] * count
            arrays = [np.asarray(one.convert("L"), np.float32) / 255 for one in masks]
            mask = torch.from_numpy(np.stack(arrays))[:, None]
        mask = mask[..., :height, :width]
        if mask.shape[-2:] != (height, width) or len(mask) != count:
            raise PriorError(
                f"found masks of shape {tuple(mask.shape)}, expected {count} of "
                f"{width}x{height} pixels like the images"
            )
        chosen: Tensor = (mask > 0.5).float()
        return chosen


def _has_condition(condition: Condition) -> bool:
    return condition.labels is not None or condition.embeddings is not None


def _same_grid(noise: Tensor, known: Tensor) -> Tensor:
    """Refuses images of another size than the noise, which is that of the prior."""
    if noise.shape != known.shape:
        raise PriorError(
            f"found images whose latents have {known.shape[3]}x{known.shape[2]} cells, expected "
            f"{noise.shape[3]}x{noise.shape[2]}: scale the images to the prior's size"
        )
    return noise


def _latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """Returns (B, 1, h, w): a cell is made anew if any of its pixels is."""
    return torch.nn.functional.adaptive_max_pool2d(mask, latents.shape[-2:])


def _keep(scheduler: Any, known: Tensor, noise: Tensor, mask: Tensor) -> Callable[..., Tensor]:
    """Puts what is known back after each step, as noisy as the next step expects it.

    As in diffusers' StableDiffusionInpaintPipeline with a model that was not trained for it.
    """

    def after_step(latents: Tensor, number: int) -> Tensor:
        times = scheduler.timesteps
        kept = known
        if number + 1 < len(times):
            kept = add_noise(scheduler, known, noise, times[number + 1])
        return mask * latents + (1 - mask) * kept

    return after_step
