"""Tiny random autoencoders of every class that the package takes, for several test files."""

from pathlib import Path
from typing import Any

import diffusers
import torch

from codec import LatentAutoencoder
from tests.conftest import TINY


def _blocks(widths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }


def _tiny(widths: tuple[int, ...], **settings: Any) -> Any:
    ones = (1,) * len(widths)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=ones,
        num_decoder_blocks=ones,
        **settings,
    )


def _dc(widths: tuple[int, ...], latent_channels: int, stages: tuple[str, ...]) -> Any:
    empty: tuple[tuple[int, ...], ...] = ((),) * len(widths)
    layers = (1,) * len(widths)
    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        attention_head_dim=4,
        encoder_block_types=stages,
        decoder_block_types=stages,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_qkv_multiscales=empty,
        decoder_qkv_multiscales=empty,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
    )


def _vq(**settings: Any) -> Any:
    model = diffusers.VQModel(**{**_blocks((8, 8)), "num_vq_embeddings": 16, **settings})
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.1)
    return model


_RES, _ATTENTION = "ResBlock", "EfficientViTBlock"

CONTINUOUS = {
    "kl": lambda: diffusers.AutoencoderKL(**_blocks((8, 8)), latent_channels=4),
    "kl-f8c16": lambda: diffusers.AutoencoderKL(
        **_blocks((4, 8, 12, 16)), latent_channels=16, shift_factor=0.1, scaling_factor=0.4
    ),
    "tiny": lambda: _tiny((8, 8)),
    "tiny-f8c16": lambda: _tiny((8, 8, 8, 8), latent_channels=16),
    "dc": lambda: _dc((8, 8), 4, (_RES, _RES)),
    "dc-f32": lambda: _dc((8, 8, 8, 8, 16, 16), 16, (_RES,) * 5 + (_ATTENTION,)),
    "dc-f64": lambda: _dc((8, 8, 8, 8, 8, 16, 32), 32, (_RES,) * 7),
    "conditional": lambda: LatentAutoencoder(**TINY, num_classes=3),
}
DISCRETE = {
    "vqmodel": lambda: _vq(latent_channels=3),
    "vqmodel-embed": lambda: _vq(latent_channels=4, vq_embed_dim=2),
    "vqmodel-spatial": lambda: _vq(**_blocks((32, 32)), norm_type="spatial"),
    "vq": lambda: LatentAutoencoder(**TINY, bottleneck="vq", codebook_size=32),
    "vq2": lambda: LatentAutoencoder(**TINY, bottleneck="vq2", codebook_size=32),
    "fsq": lambda: LatentAutoencoder(**TINY, bottleneck="fsq", fsq_levels=(8, 5, 5, 5)),
}
FACTORS = {"kl-f8c16": 8, "tiny-f8c16": 8, "dc-f32": 32, "dc-f64": 64} | dict.fromkeys(
    ("conditional", "vq", "vq2", "fsq"), 8
)


def save_model(name: str, folder: Path) -> Path:
    """Makes a model and writes it as diffusers does; returns its directory."""
    torch.manual_seed(0)
    directory = folder / name
    model = (CONTINUOUS | DISCRETE)[name]()
    model.save_pretrained(directory)
    return directory
