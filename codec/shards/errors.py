"""The error of everything that a dataset on disk can have wrong."""

from codec.errors import LatentCodecError


class ShardError(LatentCodecError):
    """A shard, an index or a manifest is damaged, newer than this release, or does not fit.

    The message names the file and, where there is one, the key of the record.
    """
