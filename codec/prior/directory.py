"""Prior directories: what prior.json says about the model beside it, and which codec it speaks.

A diffusion prior is a directory of a diffusers pipeline, a token prior one of a transformers model;
both hold prior.json beside. The latents, or codes, that a prior makes mean something to one codec
alone, which is named by its latent id. No torch here, so that wrong use is answered at once.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from codec.catalog import known_models, model_directory
from codec.checkpoint import EMBEDDED_FOLDER
from codec.errors import LatentCodecError
from codec.identity import read_json
from codec.outputs import atomic_output

if TYPE_CHECKING:
    import torch

    from codec.pipeline import Codec

PRIOR_FILE = "prior.json"
CODEC_FOLDER = "codec"
FORMAT_VERSION = 1
DEFAULT_PRIOR = "prior-clothing"
MAX_CLASSES = 100_000
MAX_SIDE = 1 << 14

Kind = Literal["diffusion", "tokens"]


class PriorError(LatentCodecError):
    """A prior that is missing, damaged, or asked for what it cannot do."""


@dataclass(frozen=True, slots=True)
class PriorInfo:
    """What prior.json says.

    Attributes:
        directory: Where the prior lies.
        name: Its name for people.
        kind: "diffusion" for continuous latents, "tokens" for codes.
        codec: Name of the codec whose latents these are; "codec" for the folder of that name in
            the prior's directory.
        latent_id: Of that codec.
        class_names: By their numbers; empty for a prior without classes.
        size: (width, height) of the images that it was trained on, in pixels.
        license_name: Licence of the weights.
        summary: One sentence for lists.
    """

    directory: Path
    name: str
    kind: Kind
    codec: str
    latent_id: str
    class_names: tuple[str, ...]
    size: tuple[int, int]
    license_name: str
    summary: str

    def class_number(self, name: str) -> int:
        """Returns the number of a class.

        Raises:
            PriorError: The prior has no such class.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        known = ", ".join(self.class_names)
        expected = f"one of {known}" if known else "no class, as it was trained without"
        raise PriorError(f"found class {name!r} for {self.name}, expected {expected}")


def write_prior(
    directory: str | os.PathLike[str],
    *,
    name: str,
    kind: Kind,
    codec: str,
    latent_id: str,
    class_names: Sequence[str],
    size: tuple[int, int],
    license_name: str,
    summary: str,
) -> PriorInfo:
    """Writes prior.json, the last file of a prior's directory; arguments are those of `PriorInfo`.

    Raises:
        PriorError: A value is of the wrong kind.
    """
    folder = Path(directory).resolve()
    content = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "kind": kind,
        "codec": codec,
        "latent_id": latent_id,
        "class_names": list(class_names),
        "size": list(size),
        "license": license_name,
        "summary": summary,
    }
    info = _parse(folder, content)
    with atomic_output(folder / PRIOR_FILE) as stream:
        stream.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return info


def read_prior(directory: str | os.PathLike[str]) -> PriorInfo:
    """Reads and checks a directory's prior.json.

    Raises:
        LatentCodecError: It is missing, newer than this release, or holds something else.
    """
    folder = Path(directory).resolve()
    if not (folder / PRIOR_FILE).is_file():
        raise PriorError(
            f"found no {PRIOR_FILE} in {folder}, expected what latent-codec-train export makes of "
            "a prior's run"
        )
    return _parse(folder, read_json(folder / PRIOR_FILE))


def embedded_priors() -> list[PriorInfo]:
    """Returns the priors that came with the package, by name."""
    return [read_prior(path.parent) for path in sorted(EMBEDDED_FOLDER.glob(f"*/{PRIOR_FILE}"))]


def find_prior(name_or_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the directory of the prior that a user names; None for the embedded default.

    Raises:
        PriorError: It is neither an embedded name nor a directory of a prior.
    """
    name = DEFAULT_PRIOR if name_or_dir is None else os.fspath(name_or_dir)
    embedded = {info.name: info.directory for info in embedded_priors()}
    if name in embedded:
        return embedded[name]
    if (Path(name) / PRIOR_FILE).is_file():
        return Path(name)
    names = f"one of {', '.join(embedded)}, or " if embedded else ""
    raise PriorError(
        f"found no prior {name!r}, expected {names}a directory that latent-codec-train export made "
        "of a prior's run"
    )


def codec_directory(info: PriorInfo) -> Path:
    """Returns the directory of the codec whose latents a prior makes.

    Raises:
        LatentCodecError: It is not at hand.
    """
    inside = info.directory / CODEC_FOLDER
    if info.codec == CODEC_FOLDER and inside.is_dir():
        return inside
    for model in known_models():
        if model.latent_id == info.latent_id or info.latent_id in model.accepts:
            return model.directory
    return model_directory(info.codec)


def load_codec(
    info: PriorInfo,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
) -> "Codec":
    """Loads the codec that decodes what a prior makes.

    Raises:
        PriorError: The codec of that name has other latents.
        LatentCodecError: It is not at hand, or damaged.
    """
    from codec.pipeline import Codec

    codec = Codec.from_pretrained(codec_directory(info), device=device, dtype=dtype)
    found = codec.info
    if found is None or info.latent_id not in (found.latent_id, *found.accepts):
        has = "no ids" if found is None else f"latents {found.latent_id}"
        raise PriorError(
            f"found {has} in codec {info.codec}, expected latents {info.latent_id}, which "
            f"{info.name} was trained on; list that codec's folder in LATENT_CODEC_MODELS"
        )
    return codec


def _parse(folder: Path, content: Any) -> PriorInfo:
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PriorError(
            f"found format_version {version!r} in {folder / PRIOR_FILE}, expected "
            f"{FORMAT_VERSION}; update latent-codec or export the prior again"
        )
    try:
        return PriorInfo(
            directory=folder,
            name=_text(content, "name"),
            kind=_kind(content["kind"]),
            codec=_text(content, "codec"),
            latent_id=_text(content, "latent_id"),
            class_names=_names(content["class_names"]),
            size=_size(content["size"]),
            license_name=_text(content, "license"),
            summary=_text(content, "summary"),
        )
    except KeyError as error:
        raise PriorError(
            f"found no {error} in {folder / PRIOR_FILE}, expected it there; export the prior again"
        ) from None
    except ValueError as error:
        raise PriorError(
            f"found {error} in {folder / PRIOR_FILE}, expected a value of another kind or range; "
            "mend it or export the prior again"
        ) from None


def _text(content: Any, key: str) -> str:
    value = content[key]
    if isinstance(value, str) and 0 < len(value) <= 1000:
        return value
    raise ValueError(f"{key} = {value!r}")


def _kind(value: object) -> Kind:
    for kind in get_args(Kind):
        if value == kind:
            found: Kind = kind
            return found
    raise ValueError(f"kind = {value!r}")


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_CLASSES:
        raise ValueError(f"class_names = {value!r:.80}")
    if not all(isinstance(name, str) and name for name in value) or len(set(value)) < len(value):
        raise ValueError(f"class_names = {value!r:.80}")
    return tuple(value)


def _size(value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        width, height = value
        if all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in (width, height)):
            return width, height
    raise ValueError(f"size = {value!r}")
