"""Makes `python -m codec` the same as `latent-codec`."""

from codec.cli import main

if __name__ == "__main__":
    main()
