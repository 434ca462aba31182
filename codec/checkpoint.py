"""Model directories: what codec.json says about the files beside it.

A model directory holds `config.json` and `diffusion_pytorch_model.safetensors` (diffusers'
save_pretrained), `entropy.safetensors`, `codec.json` and a card, `README.md`. A directory without
the last three is taken too: its ids are computed, and its files bring their own tables. No torch
here, so that commands which only list models answer at once.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codec import identity
from codec.architectures import codebook_sizes, downscale_factor, latent_channels, read_config
from codec.header import FILE_TABLES_ID
from codec.identity import CONFIG_FILE, ModelError, read_json
from codec.outputs import atomic_output

CODEC_FILE = "codec.json"
DEFAULT_QUALITY = 50
EMBEDDED_FOLDER = Path(__file__).resolve().parent / "weights"
FORMAT_VERSION = 1

# Quality 50 of latents that have a step for each channel, in the channel's deviations: the same as
# that of kl-f8d4, 0.66 for deviations of 2.72.
RELATIVE_50_STEP = 0.243

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What codec.json, or the stored weights alone, say about a model that makes and reads files.

    Attributes:
        directory: Where the model lies.
        name: Its name for people, which goes into files.
        latent_id: Encoder, bottleneck and architecture; see `codec.identity`.
        coder_id: Entropy tables; `FILE_TABLES_ID` for a model without any.
        decoder_id: Decoder and architecture.
        accepts: Latent ids that the decoder understands, its own among them.
        default_quality: Quality, 1 to 100, when the user gives none; None for a model of codes,
            which has no quality.
        quality_50_step: Quantiser step at quality 50, in units of raw latents, or of the channels'
            deviations where each channel has a step of its own; None for a model of codes.
        license_name: Licence of the weights.
        summary: One sentence for lists.
    """

    directory: Path
    name: str
    latent_id: str
    coder_id: str
    decoder_id: str
    accepts: tuple[str, ...]
    default_quality: int | None
    quality_50_step: float | None
    license_name: str
    summary: str

    @property
    def is_embedded(self) -> bool:
        """Whether the model came with the package."""
        return self.directory.parent == EMBEDDED_FOLDER

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the model."""
        return sum(path.stat().st_size for path in self.directory.iterdir() if path.is_file())

    def decodes(self, latent_id: str, coder_id: str) -> bool:
        """Whether this model may decode a file that carries these ids."""
        if latent_id not in self.accepts:
            return False
        return coder_id in (self.coder_id, FILE_TABLES_ID, *self.earlier_coders)

    @property
    def earlier_coders(self) -> tuple[str, ...]:
        """Ids of tables that the model had before and keeps for the files made with them."""
        pattern = identity.earlier_coder(self.directory, "*").name
        prefix, suffix = pattern.split("*")
        names = (path.name for path in sorted(self.directory.glob(pattern)))
        ids = (name.removeprefix(prefix).removesuffix(suffix) for name in names)
        return tuple(one for one in ids if _ID.fullmatch(one))

    def verify(self) -> None:
        """Compares the ids with the stored weights and tables.

        Raises:
            ModelError: They disagree.
        """
        for kind, stated, compute in (
            ("latent_id", self.latent_id, identity.latent_id),
            ("decoder_id", self.decoder_id, identity.decoder_id),
            ("coder_id", self.coder_id, identity.coder_id),
        ):
            found = compute(self.directory)
            if found != stated:
                raise ModelError(
                    f"found {kind} {stated} in {self.directory / CODEC_FILE}, but the files there "
                    f"have {found}; export the model again"
                )
        for coder_id in self.earlier_coders:
            path = identity.earlier_coder(self.directory, coder_id)
            if identity.tables_id(path) != coder_id:
                raise ModelError(
                    f"found other tables in {path} than its name says; fetch the model again"
                )


def finalize(
    directory: str | os.PathLike[str],
    *,
    name: str,
    default_quality: int | None,
    quality_50_step: float | None,
    license_name: str,
    summary: str,
    accepts: Iterable[str] = (),
) -> ModelInfo:
    """Writes codec.json, the last file of a model directory, with ids of what is stored there.

    Args:
        directory: Holds config.json, the weights and entropy.safetensors, all final.
        name: Name for people, at most 64 bytes of UTF-8.
        default_quality: See `ModelInfo`.
        quality_50_step: Likewise.
        license_name: Licence of the weights.
        summary: One sentence about the model.
        accepts: Latent ids of other models whose latents the decoder understands.

    Returns:
        What was written.

    Raises:
        ModelError: A file is missing or damaged, or a value is out of its range.
    """
    folder = Path(directory).resolve()
    latent_id = identity.latent_id(folder)
    content = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "latent_id": latent_id,
        "coder_id": identity.coder_id(folder),
        "decoder_id": identity.decoder_id(folder),
        "accepts": list(dict.fromkeys([latent_id, *accepts])),
        "default_quality": default_quality,
        "quality_50_step": quality_50_step,
        "license": license_name,
        "summary": summary,
    }
    info = _parse(folder, content)
    with atomic_output(folder / CODEC_FILE) as stream:
        stream.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return info


def read_info(directory: str | os.PathLike[str]) -> ModelInfo:
    """Reads and checks a directory's codec.json; `ModelInfo.verify` checks the files beside it.

    Raises:
        ModelError: It is missing, newer than this release, or holds something else.
    """
    folder = Path(directory).resolve()
    return _parse(folder, read_json(folder / CODEC_FILE))


def foreign_info(directory: str | os.PathLike[str]) -> ModelInfo:
    """Describes an autoencoder that has no codec.json; hashes its weights, which takes a while.

    Raises:
        ModelError: A part is missing or damaged, or it is no autoencoder.
    """
    folder = Path(directory).resolve()
    config = read_config(folder)
    class_name = str(config["_class_name"])
    try:
        factor, channels = downscale_factor(config), latent_channels(config)
        has_codes = bool(codebook_sizes(config))
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"found no usable {error} in {folder / CONFIG_FILE}, expected what save_pretrained "
            "writes; save the model again"
        ) from None
    latent_id = identity.latent_id(folder)
    return ModelInfo(
        directory=folder,
        name=class_name,
        latent_id=latent_id,
        coder_id=FILE_TABLES_ID,
        decoder_id=identity.decoder_id(folder),
        accepts=(latent_id,),
        default_quality=None if has_codes else DEFAULT_QUALITY,
        quality_50_step=None if has_codes else RELATIVE_50_STEP,
        license_name="not stated",
        summary=f"f{factor}, {channels} channels; files bring their own tables",
    )


def _parse(folder: Path, content: Mapping[str, object]) -> ModelInfo:
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"found format_version {version!r} in {folder / CODEC_FILE}, expected "
            f"{FORMAT_VERSION}; update latent-codec or export the model again"
        )
    try:
        accepts = content["accepts"]
        if not isinstance(accepts, list):
            raise ValueError(f"accepts = {accepts!r}")
        quality = _optional("default_quality", content, 1, 100)
        step = _optional("quality_50_step", content, 2**-16, 2**15)
        if (quality is None) != (step is None):
            raise ValueError(f"default_quality = {quality!r} beside quality_50_step = {step!r}")
        info = ModelInfo(
            directory=folder,
            name=_text("name", content["name"]),
            latent_id=_id("latent_id", content["latent_id"]),
            coder_id=_id("coder_id", content["coder_id"]),
            decoder_id=_id("decoder_id", content["decoder_id"]),
            accepts=tuple(_id("accepts", entry) for entry in accepts),
            default_quality=None if quality is None else round(quality),
            quality_50_step=step,
            license_name=_text("license", content["license"]),
            summary=_text("summary", content["summary"], max_bytes=1000),
        )
    except KeyError as error:
        raise ModelError(
            f"found no {error} in {folder / CODEC_FILE}, expected it there; export the model again"
        ) from None
    except ValueError as error:
        raise ModelError(
            f"found {error} in {folder / CODEC_FILE}, expected a value of another kind or range; "
            "mend it or export the model again"
        ) from None
    return info


def _text(key: str, value: object, max_bytes: int = 64) -> str:
    if isinstance(value, str) and value and len(value.encode()) <= max_bytes:
        return value
    raise ValueError(f"{key} = {value!r}")


def _id(key: str, value: object) -> str:
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ValueError(f"{key} = {value!r}")


def _optional(
    key: str, content: Mapping[str, object], lowest: float, highest: float
) -> float | None:
    """Returns a number, or None where null stands in its place."""
    value = content[key]
    if value is None:
        return None
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and lowest <= value <= highest
    ):
        return value
    raise ValueError(f"{key} = {value!r}")
