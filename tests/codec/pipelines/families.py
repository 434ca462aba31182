"""Tiny random pipelines of each family, from configurations alone: no hub, no downloads.

A family says how its pipeline is built around a VAE, what it is called with, and what its own
formula makes of the latents that it hands out: the raw ones that the VAE decodes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from codec.autoencoder import LatentAutoencoder
from tests.conftest import TINY

PROMPT = "a cat"
WIDTH = 16
"""Channels of prompt embeddings."""
SIDE = 8
"""Latent cells a side."""


def make_vae(**settings: Any) -> LatentAutoencoder:
    """Weights large enough for pictures that differ; scale and shift that are not neutral."""
    torch.manual_seed(0)
    model = LatentAutoencoder(
        **{**TINY, "scaling_factor": 0.5, "shift_factor": 0.25, "sample_size": 64, **settings}
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "a", "t</w>", "t", "b"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        model_max_length=16,
    )


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _unet(cross_attention_dim: int = WIDTH, **settings: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": SIDE,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": cross_attention_dim,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **settings,
        }
    ).eval()


def scheduler() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)


def _stable_diffusion(class_name: str) -> Callable[..., Any]:
    def build(vae: Any, **unet: Any) -> Any:
        return getattr(diffusers, class_name)(
            vae=vae,
            unet=_unet(**unet),
            scheduler=scheduler(),
            text_encoder=CLIPTextModel(_text_config()).eval(),
            tokenizer=tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return build


def _xl(vae: Any) -> Any:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        unet=_unet(2 * WIDTH, **added),
        scheduler=scheduler(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer_2=tokenizer(),
        add_watermarker=False,
    )


def _three(vae: Any) -> Any:
    channels = vae.config.latent_channels
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=1,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def ldm(vae: Any) -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    return quiet(diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler()))


def ldm_text(vae: Any) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    return quiet(
        diffusers.LDMTextToImagePipeline(
            vqvae=vae,
            unet=_unet(),
            scheduler=scheduler(),
            bert=_long_text_model(),
            tokenizer=BertTokenizer(vocab={word: number for number, word in enumerate(words)}),
        )
    )


def _long_text_model() -> CLIPTextModel:
    """Stands for LDM's own text model, which takes 77 tokens."""
    config = _text_config()
    config.max_position_embeddings = 77
    return CLIPTextModel(config).eval()


def dit(vae: Any) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=8,  # with the learned variance
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()
    return quiet(diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler()))


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Family:
    """A kind of pipeline that makes pictures of a prompt.

    Attributes:
        build: Takes a VAE.
        unscale: Its formula: raw latents of the configuration and scaled latents.
        settings: Of the VAE, where the family knows more statistics.
    """

    build: Callable[..., Any]
    unscale: Callable[[Mapping[str, Any], Tensor], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def pipeline(self, **settings: Any) -> Any:
        vae = make_vae(**{**self.settings, **settings})
        return quiet(self.build(vae))


def _channels(values: Any) -> Tensor:
    return torch.tensor(values)[None, :, None, None]


def by_factor(config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """Stable Diffusion 1 and 2, LDM, DiT: raw = z / scaling_factor; they know no shift."""
    return latents / config["scaling_factor"]


def by_shift_and_factor(config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """Stable Diffusion 3: raw = z / scaling_factor + shift_factor."""
    return latents / config["scaling_factor"] + config["shift_factor"]


def by_channel(config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """SDXL with statistics: raw = z * std / scaling_factor + mean."""
    std, mean = _channels(config["latents_std"]), _channels(config["latents_mean"])
    return latents * std / config["scaling_factor"] + mean


CHANNELS = {"latents_mean": (0.3, -0.2, 0.1, 0.0), "latents_std": (2.0, 3.0, 1.5, 0.5)}
FAMILIES = {
    "sd": Family(_stable_diffusion("StableDiffusionPipeline"), by_factor),
    "sdxl": Family(_xl, by_factor),
    "sdxl-channels": Family(_xl, by_channel, CHANNELS),
    "sd3": Family(_three, by_shift_and_factor),
    "sd3-16": Family(_three, by_shift_and_factor, {"latent_channels": 16}),
}
image_to_image = _stable_diffusion("StableDiffusionImg2ImgPipeline")
inpainting = _stable_diffusion("StableDiffusionInpaintPipeline")


@torch.no_grad()
def run(pipeline: Any, output_type: str, prompt: Any = PROMPT, **settings: Any) -> Tensor:
    """Two steps from seed 0: images in [0, 1] or latents, (N, channels, h, w)."""
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "generator": generator, **settings}
    images: Tensor = pipeline(prompt, output_type=output_type, **call).images
    return images


@torch.no_grad()
def to_images(vae: Any, raw_latents: Tensor) -> Tensor:
    """Images in [0, 1] as pipelines hand them out."""
    sample: Tensor = vae.decode(raw_latents).sample
    return (sample / 2 + 0.5).clamp(0, 1)
