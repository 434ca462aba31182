"""Model directories: what codec.json says about the files beside it.

A model directory holds `config.json` and `diffusion_pytorch_model.safetensors` (diffusers'
save_pretrained), `entropy.safetensors`, `codec.json` and a card, `README.md`. No torch here, so
that commands which only list models answer at once.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codec import identity
from codec.identity import ModelError, read_json
from codec.outputs import atomic_output

CODEC_FILE = "codec.json"
EMBEDDED_FOLDER = Path(__file__).resolve().parent / "weights"
FORMAT_VERSION = 1

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What codec.json says about a model that makes and reads files.

    Attributes:
        directory: Where the model lies.
        name: Its name for people, which goes into files.
        latent_id: Encoder, bottleneck and architecture; see `codec.identity`.
        coder_id: Entropy tables.
        decoder_id: Decoder and architecture.
        accepts: Latent ids that the decoder understands, its own among them.
        default_quality: Quality, 1 to 100, when the user gives none.
        quality_50_step: Quantiser step at quality 50, in units of raw latents.
        license_name: Licence of the weights.
        summary: One sentence for lists.
    """

    directory: Path
    name: str
    latent_id: str
    coder_id: str
    decoder_id: str
    accepts: tuple[str, ...]
    default_quality: int
    quality_50_step: float
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
        return coder_id == self.coder_id and latent_id in self.accepts

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


def finalize(
    directory: str | os.PathLike[str],
    *,
    name: str,
    default_quality: int,
    quality_50_step: float,
    license_name: str,
    summary: str,
    accepts: Iterable[str] = (),
) -> ModelInfo:
    """Writes codec.json, the last file of a model directory, with ids of what is stored there.

    Args:
        directory: Holds config.json, the weights and entropy.safetensors, all final.
        name: Name for people, at most 64 bytes of UTF-8.
        default_quality: 1 to 100.
        quality_50_step: Quantiser step at quality 50, in units of raw latents.
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
        info = ModelInfo(
            directory=folder,
            name=_text("name", content["name"]),
            latent_id=_id("latent_id", content["latent_id"]),
            coder_id=_id("coder_id", content["coder_id"]),
            decoder_id=_id("decoder_id", content["decoder_id"]),
            accepts=tuple(_id("accepts", entry) for entry in accepts),
            default_quality=round(_number("default_quality", content["default_quality"], 1, 100)),
            quality_50_step=_number("quality_50_step", content["quality_50_step"], 2**-16, 2**15),
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


def _number(key: str, value: object, lowest: float, highest: float) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and lowest <= value <= highest
    ):
        return value
    raise ValueError(f"{key} = {value!r}")
