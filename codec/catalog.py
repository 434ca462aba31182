"""Which models there are and who may decode what.

Ids in a file's header are looked up among the embedded models and the folders that the user lists
in LATENT_CODEC_MODELS: codecs, and autoencoders of diffusers, whose ids are computed from their
weights when a file asks for one. Nothing that a header names is ever downloaded; only a model that
the user names may come from the hub.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from codec import identity
from codec.architectures import is_autoencoder
from codec.checkpoint import CODEC_FILE, EMBEDDED_FOLDER, ModelInfo, foreign_info, read_info
from codec.errors import LatentCodecError
from codec.header import FILE_TABLES_ID
from codec.identity import CONFIG_FILE, ENTROPY_FILE, ModelError

DEFAULT_MODEL = "kl-f8d4"
MODELS_VARIABLE = "LATENT_CODEC_MODELS"

# Where pipelines keep their autoencoder: Stable Diffusion, DiT; LDM; Kandinsky.
PIPELINE_FOLDERS = ("vae", "vqvae", "movq")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# All that may come from a hub: never a pickle, never code.
_HUB_FILES = [
    f"{folder}{name}"
    for folder in ("", *(f"{part}/" for part in PIPELINE_FOLDERS))
    for name in (
        CONFIG_FILE,
        CODEC_FILE,
        ENTROPY_FILE,
        identity.earlier_coder(Path(), "*").name,
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

    Codecs come before autoencoders without codec.json, whose weights are hashed here.

    Raises:
        ModelError: A folder is missing or holds no model, or a model there is broken.
    """
    yield from known_codecs()
    for directory in _listed_directories():
        if not (directory / CODEC_FILE).is_file():
            yield foreign_info(directory)


def known_codecs() -> Iterator[ModelInfo]:
    """Yields those of `known_models` that have a codec.json.

    Raises:
        ModelError: As for `known_models`.
    """
    yield from embedded_models()
    for directory in _listed_directories():
        if (directory / CODEC_FILE).is_file():
            yield read_info(directory)


def _listed_directories() -> Iterator[Path]:
    """Yields the model directories that LATENT_CODEC_MODELS names, or that lie in its folders."""
    for entry in filter(None, os.environ.get(MODELS_VARIABLE, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        found = _models_in(folder)
        if not found and folder.is_dir():
            found = [model for child in sorted(folder.iterdir()) for model in _models_in(child)]
        if not found:
            raise ModelError(
                f"found no model in {entry!r}, which {MODELS_VARIABLE} names; expected a model "
                "directory or a folder of them"
            )
        yield from found


def _models_in(folder: Path) -> list[Path]:
    """Returns the directory of the one model that a folder is, or that its pipeline has."""
    places = (folder, *(folder / part for part in PIPELINE_FOLDERS))
    return [p for p in places if (p / CODEC_FILE).is_file() or is_autoencoder(p)][:1]


def find_model(latent_id: str, coder_id: str, given: ModelInfo | None = None) -> ModelInfo:
    """Returns a model that may decode a file with these ids.

    Args:
        latent_id: From the file's header.
        coder_id: Likewise.
        given: The model that the user named, which may not; the error speaks of it.

    Raises:
        UnknownModelError: There is none.
        ModelError: LATENT_CODEC_MODELS names something that is no model.
    """
    # Autoencoders without tables read only files that bring theirs: no need to hash the others.
    for info in known_models() if coder_id == FILE_TABLES_ID else known_codecs():
        if info.decodes(latent_id, coder_id):
            return info
    what, directory = f"latents {latent_id}, coder {coder_id}", "the model"
    if coder_id == FILE_TABLES_ID:
        what, directory = f"latents {latent_id}, tables in the file", "the autoencoder's directory"
    beside = ""
    if given is not None:
        beside = f"; {given.name} reads latents {', '.join(given.accepts)}, coder {given.coder_id}"
    raise UnknownModelError(
        f"found a file of a model that is not at hand ({what}{beside}); "
        f"give {directory} with --model DIR, or list its folder in {MODELS_VARIABLE}"
    )


def model_directory(name_or_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the directory of the model that a user names.

    Args:
        name_or_dir: An embedded name, a model directory (or that of a saved pipeline, which has its
            autoencoder in one of `PIPELINE_FOLDERS`), the name of a model in LATENT_CODEC_MODELS,
            or else a hub id ("owner/name"), whose safetensors are then fetched or taken from the
            local cache. None for the default.

    Raises:
        UnknownModelError: It is none of these, or the hub does not give it.
    """
    name = os.fspath(name_or_dir) if name_or_dir is not None else DEFAULT_MODEL
    embedded = {info.name: info.directory for info in embedded_models()}
    if name in embedded:
        return embedded[name]
    if Path(name).is_dir():
        return autoencoder_folder(Path(name))
    for info in known_codecs():
        if info.name == name:
            return info.directory
    if _HUB_ID.fullmatch(name):
        return autoencoder_folder(_from_hub(name))
    raise UnknownModelError(
        f"found no model {name!r}; expected one of {', '.join(embedded) or 'no embedded model'}, "
        "a model directory, or a hub id such as 'owner/name'"
    )


def autoencoder_folder(folder: Path) -> Path:
    """Returns the folder of the autoencoder in a saved pipeline, and any other folder as it is."""
    if (folder / CONFIG_FILE).is_file():
        return folder
    inner = (folder / part for part in PIPELINE_FOLDERS)
    return next((part for part in inner if part.is_dir()), folder)


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
