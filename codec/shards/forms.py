"""The forms that shards come in, and what a writer takes for each record."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from codec.shards import fields
from codec.shards.errors import ShardError


class Container(StrEnum):
    """What holds the records of a shard."""

    TAR = "tar"
    PARQUET = "parquet"


class Content(StrEnum):
    """How a record holds its latents."""

    LC = "lc"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class ShardForm:
    """Container and content of a dataset's shards.

    Attributes:
        container: Tar or Parquet.
        content: `.lc` files of quantised latents, or numbers.
        posterior: Whether numbers come with the log variance of the posterior.

    Raises:
        ShardError: A posterior is asked for beside `.lc` files, which cannot hold one.
    """

    container: Container = Container.TAR
    content: Content = Content.LC
    posterior: bool = False

    def __post_init__(self) -> None:
        if self.posterior and self.content is Content.LC:
            raise ShardError(
                "found a posterior beside .lc files, which hold no log variance; expected it with "
                "float16 or float32"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of raw content; float32 is also what `.lc` files decode to."""
        return np.dtype("<f2" if self.content is Content.FLOAT16 else "<f4")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "container": self.container.value,
            "content": self.content.value,
            "posterior": self.posterior,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Takes its fields out of an object that may have others.

        Raises:
            ShardError: A value is unknown.
        """
        return cls(
            Container(_one_of(content, "container", Container)),
            Content(_one_of(content, "content", Content)),
            fields.flag(content, "posterior"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LatentData:
    """The latents of one record.

    Attributes:
        raw_latents: float32 (C, h, w): what a reader gets back. Dequantised for `.lc` files, else
            the posterior's mode.
        payload: The `.lc` file, for `Content.LC`.
        log_variance: float32 (C, h, w), where the form has a posterior.
    """

    raw_latents: NDArray[np.float32]
    payload: bytes | None = None
    log_variance: NDArray[np.float32] | None = None


def _one_of(content: Mapping[str, Any], name: str, kinds: type[StrEnum]) -> str:
    value, known = content.get(name), [kind.value for kind in kinds]
    if value not in known:
        raise ShardError(f"found {name} = {repr(value)[:60]}, expected {' or '.join(known)}")
    return str(value)
