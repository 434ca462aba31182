"""Which models there are and who may decode what.

Ids in a file's header are looked up among the embedded models and the folders that the user lists
in LATENT_CODEC_MODELS. Nothing that a header names is ever downloaded; only a model that the user
names may come from the hub.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from codec import identity
from codec.checkpoint import CODEC_FILE, EMBEDDED_FOLDER, ModelInfo, read_info
from codec.errors import LatentCodecError
from codec.identity import CONFIG_FILE, ENTROPY_FILE, ModelError

DEFAULT_MODEL = "kl-f8d4"
MODELS_VARIABLE = "LATENT_CODEC_MODELS"

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# All that may come from a hub: never a pickle, never code.
_HUB_FILES = [
    f"{folder}{name}"
    for folder in ("", "vae/")
    for name in (
        CONFIG_FILE,
        CODEC_FILE,
        ENTROPY_FILE,
        f"{identity.WEIGHTS_STEM}.safetensors",
        f"{identity.WEIGHTS_STEM}-*.safetensors",
        f"{identity.WEIGHTS_STEM}.safetensors.index.json",
    )
]


class UnknownModelError(LatentCodecError):
    """No model at hand has the name or the ids that were asked for."""


def embedded_models() -> list[ModelInfo]:
    """Returns the models that came with the package, by name."""
    return [read_info(path.parent) for path in sorted(EMBEDDED_FOLDER.glob(f"*/{CODEC_FILE}"))]


def known_models() -> Iterator[ModelInfo]:
    """Yields the embedded models, then those in the folders of LATENT_CODEC_MODELS.

    Raises:
        ModelError: A folder is missing or holds no model, or a model there is broken.
    """
    yield from embedded_models()
    for entry in filter(None, os.environ.get(MODELS_VARIABLE, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if (folder / CODEC_FILE).is_file():
            yield read_info(folder)
            continue
        found = sorted(folder.glob(f"*/{CODEC_FILE}"))
        if not found:
            raise ModelError(
                f"found no model in {entry!r}, which {MODELS_VARIABLE} names; expected a model "
                "directory or a folder of them"
            )
        for path in found:
            yield read_info(path.parent)


def find_model(latent_id: str, coder_id: str) -> ModelInfo:
    """Returns a model that may decode a file with these ids.

    Raises:
        UnknownModelError: There is none.
        ModelError: LATENT_CODEC_MODELS names something that is no model.
    """
    for info in known_models():
        if info.decodes(latent_id, coder_id):
            return info
    raise UnknownModelError(
        f"found a file of a model that is not at hand (latents {latent_id}, coder {coder_id}); "
        f"give the model with --model DIR, or list its folder in {MODELS_VARIABLE}"
    )


def model_directory(name_or_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the directory of the model that a user names.

    Args:
        name_or_dir: An embedded name, a model directory (or a saved pipeline with a `vae` folder),
            the name of a model in LATENT_CODEC_MODELS, or else a hub id ("owner/name"), whose
            safetensors are then fetched or taken from the local cache. None for the default.

    Raises:
        UnknownModelError: It is none of these, or the hub does not give it.
    """
    name = os.fspath(name_or_dir) if name_or_dir is not None else DEFAULT_MODEL
    embedded = {info.name: info.directory for info in embedded_models()}
    if name in embedded:
        return embedded[name]
    if Path(name).is_dir():
        return _autoencoder_folder(Path(name))
    for info in known_models():
        if info.name == name:
            return info.directory
    if _HUB_ID.fullmatch(name):
        return _autoencoder_folder(_from_hub(name))
    raise UnknownModelError(
        f"found no model {name!r}; expected one of {', '.join(embedded) or 'no embedded model'}, "
        "a model directory, or a hub id such as 'owner/name'"
    )


def _autoencoder_folder(folder: Path) -> Path:
    inner = folder / "vae"
    return inner if not (folder / CONFIG_FILE).is_file() and inner.is_dir() else folder


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:  # the hub's errors are of these two
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnknownModelError(
            f"found no directory {repository!r}, and the hub did not give a model of that name "
            f"({reason}); expected a model directory, an embedded name or a hub id"
        ) from error
