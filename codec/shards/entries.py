"""What a manifest says of the model that made the latents, and of each shard."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from codec.shards import fields
from codec.shards.errors import ShardError

_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class ModelIds:
    """The model that made the latents; see `codec.identity` for the ids.

    Attributes:
        name: For people.
        latent_id: None where nobody knows, for imported latents.
        coder_id: None for raw content.
        decoder_id: None where nobody knows.
    """

    name: str
    latent_id: str | None = None
    coder_id: str | None = None
    decoder_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "name": self.name,
            "latent_id": self.latent_id,
            "coder_id": self.coder_id,
            "decoder_id": self.decoder_id,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: A field is unknown or malformed.
        """
        names = ("latent_id", "coder_id", "decoder_id")
        fields.check_names(content, {"name", *names}, "the model")
        ids = (
            None if content.get(name) is None else fields.digest(content, name, _ID_DIGITS)
            for name in names
        )
        return cls(fields.text(content, "name", most=1000), *ids)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard in the manifest: its number of records, bytes and checksum."""

    file: str
    size_bytes: int
    sha256: str
    num_records: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "file": self.file,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "records": self.num_records,
        }

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: It is something else.
        """
        if not isinstance(content, dict):
            raise ShardError("found a shard that is no object; fetch the file again")
        fields.check_names(content, {"file", "bytes", "sha256", "records"}, "a shard")
        return cls(
            fields.text(content, "file", most=100),
            fields.integer(content, "bytes", 0),
            fields.digest(content, "sha256", 64),
            fields.integer(content, "records", 0),
        )
