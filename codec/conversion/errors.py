"""The error of this room."""

from codec.errors import LatentCodecError


class ConversionError(LatentCodecError):
    """A model or checkpoint that cannot be brought into the form that was asked for."""
