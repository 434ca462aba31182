"""Pixels to raw latents, batch by batch: what runs on the device.

A batch that does not fit into memory is cut in half, for good; an image whose latents are not
finite is encoded again in float32. Both are told, neither stops the job.
Legend: N images, C latent channels, h w cells of the latent grid, f downscale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from codec import backbone, catalog, images
from codec.architectures import codebook_sizes, read_config
from codec.checkpoint import CODEC_FILE, ModelInfo, foreign_info, read_info
from codec.codes import Codes, Indices, codes_of
from codec.device import choose_device, choose_dtype
from codec.errors import LatentCodecError
from codec.images import Pixels
from codec.latent_model import LatentModel
from codec.tiling import TILE_CELLS, map_tiles


class NoPosteriorError(LatentCodecError):
    """Log-variances were wanted of a model that has none."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model encodes, and how: plain data that travels to worker processes.

    Attributes:
        info: Its ids and its place.
        device: Where it runs.
        dtype: What it computes in, as torch names it: "float32", "bfloat16" or "float16".
        posterior: Whether log-variances are wanted beside the latents.
    """

    info: ModelInfo
    device: str
    dtype: str
    posterior: bool = False

    @property
    def has_codes(self) -> bool:
        """Whether its latents are codes."""
        return bool(codebook_sizes(read_config(self.info.directory)))


def find_model(
    model: str | None,
    device: str | None,
    dtype: str | None,
    *,
    posterior: bool = False,
    is_here: bool = True,
) -> ModelSpec:
    """Settles which model encodes, without loading its network.

    Args:
        model: A name, a directory or a hub id; None for the embedded default.
        device: None for the fastest.
        dtype: None for the fastest that is safe.
        posterior: Whether log-variances are wanted.
        is_here: Whether it will run on this machine; elsewhere a device that is named is believed.

    Raises:
        UnknownModelError: No model has that name.
        ModelError: It is incomplete, damaged, or not what its ids say.
        NoPosteriorError: It has no log-variances.
        DeviceError: The device or dtype is unknown or not there.
    """
    directory = catalog.model_directory(model)
    config = read_config(directory)
    if (directory / CODEC_FILE).is_file():
        info = read_info(directory)
        info.verify()
    else:
        info = foreign_info(directory)
    if posterior and not _has_posterior(config):
        raise NoPosteriorError(
            f"found {info.name}, whose latents have no distribution, expected a model with one for "
            "log-variances; leave --posterior out"
        )
    place = choose_device(device) if is_here or device is None else torch.device(device)
    chosen = choose_dtype(place, dtype, force_upcast=bool(config.get("force_upcast", False)))
    return ModelSpec(info, str(place), str(chosen).removeprefix("torch."), posterior)


def _has_posterior(config: Mapping[str, object]) -> bool:
    if config["_class_name"] == "LatentAutoencoder":
        return config.get("bottleneck", "gaussian") == "gaussian"
    return config["_class_name"] == "AutoencoderKL"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """What the model makes of one image.

    Attributes:
        raw_latents: float32 (C, h, w); the mean where there is a distribution.
        indices: int32 (rows, columns) of each codebook, coarse to fine, of a model of codes.
        log_variance: float32 (C, h, w), where it was wanted.
        is_retried: Whether it had to be encoded again in float32.
    """

    raw_latents: NDArray[np.float32]
    indices: Indices | None = None
    log_variance: NDArray[np.float32] | None = None
    is_retried: bool = False


@dataclass(slots=True)
class Encoder:
    """A network on its device.

    Attributes:
        spec: What was loaded.
        batch_limit: Most images at once that memory has turned out to hold; None for any number.
    """

    spec: ModelSpec
    batch_limit: int | None = None
    _model: LatentModel = field(init=False)
    _exact: LatentModel | None = field(init=False, default=None)
    _codes: Codes | None = field(init=False)

    def __post_init__(self) -> None:
        autoencoder = backbone.load_autoencoder(self.spec.info.directory)
        self._codes = codes_of(autoencoder)  # before they are cast
        self._model = self._place(autoencoder, self.spec.dtype)

    @property
    def codes(self) -> Codes | None:
        """The model's codebooks; None for continuous latents."""
        return self._codes

    def encode(self, pixels: Pixels) -> list[EncodedImage | str]:
        """Encodes images of one size.

        Args:
            pixels: uint8 (N, H, W, 3), of any size; they are padded as `codec.Codec` pads them.

        Returns:
            N results: latents, or a sentence that says why there are none.
        """
        multiple = self._model.multiple
        bottom, right = -pixels.shape[1] % multiple, -pixels.shape[2] % multiple
        if bottom or right:
            pixels = np.stack([images.pad(image, multiple) for image in pixels])
        found = self._in_parts(self._model, pixels)
        broken = [k for k, values in enumerate(found) if isinstance(values, Tensor)]
        broken = [k for k in broken if not torch.isfinite(found[k]).all()]  # type: ignore[arg-type]
        if broken and self._model.dtype != torch.float32:
            again = self._in_parts(self._exact_model(), pixels[broken])
            found = [*found]
            for k, values in zip(broken, again, strict=True):
                found[k] = values
        return [self._result(values, k in broken) for k, values in enumerate(found)]

    def _result(self, values: Tensor | str, is_retried: bool) -> EncodedImage | str:
        """Sorts the channels (D, h, w) of one image into what they are."""
        if isinstance(values, str):
            return values
        if not torch.isfinite(values).all():
            return "its latents are not finite, in float32 too: the model does not take this image"
        if self._codes is not None:
            grids = values.to(torch.int32).numpy()
            indices = tuple(
                np.ascontiguousarray(grid[::stride, ::stride])
                for grid, stride in zip(grids, self._codes.strides, strict=True)
            )
            return EncodedImage(self._codes.to_latents(indices), indices)
        # copies, or one image that waits would keep its whole batch in memory
        parts = [part.numpy().copy() for part in torch.split(values, self._model.latent_channels)]
        return EncodedImage(parts[0], None, parts[1] if len(parts) > 1 else None, is_retried)

    def _in_parts(self, model: LatentModel, pixels: Pixels) -> list[Tensor | str]:
        """Returns the channels (D, h, w) of each image, in batches that memory holds."""
        found: list[Tensor | str] = []
        while len(found) < len(pixels):
            part = pixels[len(found) :][: self.batch_limit]
            try:
                found += self._run(model, part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    height, width = part.shape[1:3]
                    found.append(
                        f"{model.device} has too little memory for {width}x{height} pixels: give a "
                        "smaller --size"
                    )
                else:
                    self.batch_limit = len(part) // 2
            if model.device.type == "cuda" and self.batch_limit is not None:
                torch.cuda.empty_cache()  # so that what was freed is of use to smaller batches
        return found

    @torch.inference_mode()
    def _run(self, model: LatentModel, pixels: Pixels) -> list[Tensor]:
        """Runs the network; large images go through it tile by tile."""
        margin = getattr(model.autoencoder, "encoder_margin", None)
        cells = max(pixels.shape[1:3]) // model.factor
        whole = rearrange(
            torch.from_numpy(np.require(pixels, requirements="W")), "n h w c->n c h w"
        )

        def run(part: Tensor) -> Tensor:
            x = part.to(model.device).float().div_(127.5).sub_(1).to(model.dtype)  # as `to_unit`
            output = model.autoencoder.encode(x.contiguous(memory_format=torch.channels_last))
            return self._channels(output).float().cpu()

        values = map_tiles(
            run,
            whole,
            in_scale=model.factor,
            out_scale=1,
            margin=0 if margin is None else margin // model.factor,
            tile=cells if margin is None else TILE_CELLS,
        )
        return list(values)

    def _channels(self, output: Any) -> Tensor:
        """What is kept of the model's output: (N, D, h, w)."""
        if self._codes is not None:
            return self._index_channels(self._codes, output)
        if self.spec.posterior:
            return torch.cat([output.latent_dist.mean, output.latent_dist.logvar], 1)
        return backbone.output_latents(output)

    def _index_channels(self, codes: Codes, output: Any) -> Tensor:
        """The indices of every codebook at the latents' own grid, as tiles want them."""
        found = output.indices if hasattr(output, "indices") else None
        if found is None:
            found = codes.search(output.latents.float().cpu())
        grids = [
            grid.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
            for grid, stride in zip(found, codes.strides, strict=True)
        ]
        return torch.stack(grids, 1)

    def _exact_model(self) -> LatentModel:
        """The same network in float32, from the stored weights: a cast one has lost digits."""
        if self._exact is None:
            self._exact = self._place(
                backbone.load_autoencoder(self.spec.info.directory), "float32"
            )
        return self._exact

    def _place(self, autoencoder: Any, dtype: str) -> LatentModel:
        return LatentModel(autoencoder, device=self.spec.device, dtype=dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )


def model_codes(directory: Path) -> Codes | None:
    """Returns the codebooks of a model; only a model that has some is loaded for that."""
    if not codebook_sizes(read_config(directory)):
        return None
    return codes_of(backbone.load_autoencoder(directory))
