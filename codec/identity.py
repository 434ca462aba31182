"""Ids that say whether two models mean the same latents, symbols and pixels.

An id is the start of a SHA-256 over stored bytes, never over loaded tensors: a model loaded as
bfloat16 is still the same model. Scaling statistics are in none of them, for they can be measured
anew without changing a single file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codec.errors import LatentCodecError

ID_BYTES = 8
CONFIG_FILE = "config.json"
ENTROPY_FILE = "entropy.safetensors"
WEIGHTS_STEM = "diffusion_pytorch_model"

_LATENT_TENSORS = ("encoder.", "bottleneck.", "quant_conv.", "quantize.")
_DECODER_TENSORS = ("decoder.", "post_quant_conv.")
_STATISTICS = frozenset(
    {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
)
# Entries that config.json gained after version 1, or in later releases of diffusers, as long as
# they say what was always the case: a model that is saved anew keeps its ids.
_LATER_DEFAULTS: Mapping[str, object] = {
    "bottleneck": "gaussian",
    "codebook_size": 4096,
    "codebook_cosine": False,
    "fsq_levels": [8, 8, 8, 8],
    "num_classes": None,
    "decoder_in_conv": False,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "lookup_from_codebook": False,
    "norm_type": "group",
    "upsample_fn": "nearest",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}
# Classes whose copies differ in the size that they suggest to pipelines, with the same weights.
_SIZED_ANYHOW = frozenset({"AutoencoderKL", "VQModel"})
_ABSENT = object()
_MAX_JSON_BYTES = 1 << 22
_HEADER_LIMIT = 100_000_000  # safetensors' own bound
_READ_BYTES = 1 << 20


class ModelError(LatentCodecError):
    """A model directory that is missing, incomplete, damaged or of an unknown kind."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def latent_id(directory: Path) -> str:
    """Returns the id of what makes latents: the encoder, the bottleneck, the architecture."""
    config = architecture(directory)
    config = {key: value for key, value in config.items() if not key.startswith("decoder_")}
    return _hash(config, _select(weight_files(directory), _LATENT_TENSORS))


def decoder_id(directory: Path) -> str:
    """Returns the id of what turns latents into pixels: the decoder and the architecture."""
    return _hash(architecture(directory), _select(weight_files(directory), _DECODER_TENSORS))


def coder_id(directory: Path) -> str:
    """Returns the id of the entropy coder's tables."""
    return tables_id(directory / ENTROPY_FILE)


def tables_id(path: Path) -> str:
    """Returns the id of the entropy coder in a file."""
    return _hash({}, _select([path], ("",)))


def earlier_coder(directory: Path, coder_id: str) -> Path:
    """Returns where a model keeps tables that it had before, for the files made with them."""
    return directory / f"{Path(ENTROPY_FILE).stem}-{coder_id}{Path(ENTROPY_FILE).suffix}"


def architecture(directory: Path) -> dict[str, object]:
    """Returns the entries of config.json that shape the network."""
    config = read_json(directory / CONFIG_FILE)
    if config.get("_class_name") in _SIZED_ANYHOW:
        config.pop("sample_size", None)
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_")
        and key not in _STATISTICS
        and value != _LATER_DEFAULTS.get(key, _ABSENT)
    }


def has_weights(directory: Path) -> bool:
    """Whether a directory has weights that `weight_files` finds."""
    return bool(_weight_files(directory))


def weight_files(directory: Path) -> list[Path]:
    """Returns the safetensors files that hold a model's weights, one or its shards.

    Raises:
        ModelError: There are none.
    """
    files = _weight_files(directory)
    if not files:
        raise ModelError(
            f"found no {WEIGHTS_STEM}.safetensors in {directory}, expected the weights there; only "
            "safetensors are loaded, so save a pickled model with save_pretrained first"
        )
    return files


def _weight_files(directory: Path) -> list[Path]:
    whole = directory / f"{WEIGHTS_STEM}.safetensors"
    return [whole] if whole.is_file() else sorted(directory.glob(f"{WEIGHTS_STEM}-*.safetensors"))


def read_json(path: Path) -> dict[str, object]:
    """Returns the object in a small JSON file.

    Raises:
        ModelError: The file is missing, too large or not a JSON object.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_JSON_BYTES + 1)
        content = json.loads(data) if len(data) <= _MAX_JSON_BYTES else None
    except FileNotFoundError:
        raise ModelError(f"found no {path.name} in {path.parent}, expected a model there") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"found something else in {path}, expected a small JSON object")
    return content


def _select(files: Iterable[Path], prefixes: tuple[str, ...]) -> list[StoredTensor]:
    tensors = (tensor for path in files for tensor in stored_tensors(path))
    chosen = (tensor for tensor in tensors if tensor.name.startswith(prefixes))
    return sorted(chosen, key=lambda tensor: tensor.name)


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Reads the header of a safetensors file: what it holds and where.

    Raises:
        ModelError: The file is missing, cut short or not a safetensors file.
    """
    try:
        with path.open("rb") as stream:
            end = path.stat().st_size
            header_size = int.from_bytes(stream.read(8), "little")
            if not 2 <= header_size <= min(_HEADER_LIMIT, end - 8):
                raise ValueError("header size")
            header = json.loads(stream.read(header_size))
        header.pop("__metadata__", None)
        return [_locate(path, name, entry, 8 + header_size, end) for name, entry in header.items()]
    except FileNotFoundError:
        raise ModelError(f"found no {path.name} in {path.parent}, expected it there") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise ModelError(
            f"found damage in {path}, expected a complete safetensors file; fetch it again"
        ) from None


def _locate(
    path: Path, name: str, entry: Mapping[str, object], base: int, end: int
) -> StoredTensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise TypeError(name)
    start, stop = offsets
    if not 0 <= start <= stop <= end - base:
        raise ValueError(name)
    sides = tuple(int(side) for side in shape)
    return StoredTensor(path, name, dtype, sides, base + start, stop - start)


def _hash(config: Mapping[str, object], tensors: Iterable[StoredTensor]) -> str:
    digest = hashlib.sha256()
    _feed(digest.update, config)
    for tensor in tensors:
        _feed(digest.update, [tensor.name, tensor.dtype, tensor.shape])
        with tensor.path.open("rb") as stream:
            stream.seek(tensor.start)
            left = tensor.size
            while left and (block := stream.read(min(left, _READ_BYTES))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()[: 2 * ID_BYTES]


def _feed(update: Callable[[bytes], None], value: object) -> None:
    """Hashes a JSON value in one spelling, its length first so that nothing runs together."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    update(len(text).to_bytes(8, "little") + text)
