"""The base of every error that a user of latent-codec may meet.

Domain errors (a damaged file, an unknown model, an unreadable image) are subclasses that live
beside the code that raises them. Each message is one sentence: what was found, what was expected,
what to do.
"""


class LatentCodecError(ValueError):
    """Something that a user gave cannot be used; the message says what and how to mend it."""
