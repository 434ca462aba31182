"""Tensors that take long to compute, kept in a folder so that the next run finds them."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from codec.outputs import atomic_output

Tensors = Mapping[str, Tensor]


class Keeper:
    """A folder of tensors by what they were computed from.

    Keys name content and settings: what depends on anything else must not be kept.
    """

    def __init__(self, folder: Path | None) -> None:
        """Use a folder, made when something is first kept; None keeps nothing."""
        self._folder = folder

    def get(self, kind: str, *key: object, make: Callable[[], Tensors]) -> Tensors:
        """Return what is kept under a key, or make and keep it.

        Args:
            kind: what it is, for the file's name.
            key: all that it depends on, by its text.
            make: computes it.
        """
        if self._folder is None:
            return make()
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()[:16]
        path = self._folder / f"{kind}-{digest}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (OSError, SafetensorError):  # damaged: the file is replaced
                pass
        made = make()
        contiguous = {name: tensor.contiguous().cpu() for name, tensor in made.items()}
        with atomic_output(path) as stream:
            stream.write(save(contiguous))
        return made
