"""Makes `python -m codec` the same as `latent-codec`."""

from codec.cli import script

if __name__ == "__main__":
    script()
