"""The configuration of a diffusion prior's training: every setting, its default and its bounds."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from train.sections import MAX_ACCUMULATION, OptimizerConfig, Section


class PriorModelConfig(Section):
    """The denoiser, and whose latents it learns."""

    codec: str = Field(
        "kl-f8d4",
        description="embedded name or directory of the autoencoder whose latents are learned; it "
        "stays as it is",
    )
    architecture: Literal["unet", "dit"] = Field(
        "unet", description="diffusers' UNet2DModel or DiTTransformer2DModel"
    )
    widths: tuple[int, ...] = Field(
        (64, 128, 192), min_length=1, description="channels of the UNet's levels; one for dit"
    )
    layers: int = Field(1, ge=1, description="blocks a level of the UNet; all blocks of dit")
    head_width: int = Field(32, ge=1, description="channels of an attention head")
    attention: tuple[int, ...] = Field(
        (1, 2), description="levels of the UNet with attention, 0 being the finest"
    )
    patch_size: int = Field(1, ge=1, description="side of the square of cells that is one position")
    dropout: float = Field(0.1, ge=0, lt=1)
    condition: Literal["none", "class", "embeddings"] = Field(
        "class", description="what an image is generated from beside noise"
    )
    condition_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of samples whose condition is left out, so that guidance has something "
        "to start from",
    )


class PriorDataConfig(Section):
    """Images that are encoded once, or latents of a finished dataset."""

    folders: tuple[str, ...] = Field(
        (), description="folders of images; the class is the name of an image's own folder"
    )
    exclude: tuple[str, ...] = Field(
        (), description="text files with one image name a line that are never trained on"
    )
    size: int = Field(256, ge=16, description="images are scaled and cut to squares of this side")
    flip: bool = Field(True, description="learn a mirrored copy of each image too")
    shards: str | None = Field(
        None, description="in place of folders: a dataset that latent-codec dataset has made"
    )
    sample_posterior: bool = Field(
        False,
        description="shards: draw from the posterior in every epoch, where the dataset has one",
    )
    embeddings: str | None = Field(
        None,
        description="safetensors file with a tensor (tokens, width) for each image, named like the "
        "image without its suffix, below its folder: what condition=embeddings generates from",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.folders) == (self.shards is not None):
            raise ValueError(
                "found data.folders and data.shards both given or both missing: give one of them"
            )
        if self.shards is not None and (self.exclude or self.embeddings):
            raise ValueError("data.exclude and data.embeddings go with data.folders alone")
        if self.sample_posterior and self.shards is None:
            raise ValueError("data.sample_posterior goes with data.shards alone")
        return self


class ObjectiveConfig(Section):
    """What the denoiser predicts, and which times weigh how much."""

    objective: Literal["flow", "epsilon", "v_prediction"] = Field(
        "flow",
        description="flow: rectified flow, noise less image (arXiv:2209.03003); epsilon: the noise "
        "(arXiv:2006.11239); v_prediction (arXiv:2202.00512)",
    )
    time_weighting: Literal["uniform", "logit_normal", "min_snr"] = Field(
        "logit_normal",
        description="logit_normal draws middle times more often (arXiv:2403.03206); min_snr "
        "bounds the weight of clean times (arXiv:2303.09556), for epsilon and v_prediction",
    )
    logit_mean: float = Field(0.0, description="logit_normal: above 0 for noisier times")
    logit_std: float = Field(1.0, gt=0)
    min_snr_gamma: float = Field(5.0, gt=0)
    noise_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        "scaled_linear", description="of epsilon and v_prediction: diffusers' beta_schedule"
    )
    zero_terminal_snr: bool = Field(
        False, description="v_prediction: the last time is all noise (arXiv:2305.08891)"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.time_weighting == "min_snr" and self.objective == "flow":
            raise ValueError(
                "time_weighting min_snr goes with objective epsilon or v_prediction: use "
                "logit_normal or uniform for flow"
            )
        if self.zero_terminal_snr and self.objective != "v_prediction":
            raise ValueError(
                "zero_terminal_snr goes with objective v_prediction: noise alone tells nothing of "
                "the image at the last time"
            )
        return self


class PriorRunConfig(Section):
    """Budget, precision, reproducibility and what is written when."""

    output_dir: str = Field("runs/prior", description="checkpoints, log and configuration go here")
    seed: int = Field(0, ge=0, lt=2**15)
    batch_size: int = Field(32, ge=1, description="latents a step and process")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_ACCUMULATION)
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "bf16", description="weights stay float32; fp16 needs a GPU"
    )
    max_images: int = Field(
        200_000, ge=1, description="latents to train on; the schedule ends here"
    )
    max_minutes: float | None = Field(None, gt=0, description="stop, saved, after this long")
    checkpoint_minutes: float = Field(5.0, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    log_every: int = Field(50, ge=1, description="steps between lines of the log")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="Accelerate's trackers, such as tensorboard or wandb"
    )
    validation_folder: str | None = Field(
        None, description="held-out images, in folders of the same class names"
    )
    validation_shards: str | None = Field(None, description="or a dataset of held-out latents")
    validation_images: int = Field(256, ge=1, description="at most, spread evenly")
    validation_every: int = Field(20_000, ge=1, description="images between validations")
    time_bins: int = Field(10, ge=1, le=100, description="parts of the time with a loss each")
    sample_steps: int = Field(20, ge=1, description="of the pictures that a validation draws")
    sample_guidance: float = Field(2.0, ge=1)

    @model_validator(mode="after")
    def _one_held_out_set(self) -> Self:
        if self.validation_folder is not None and self.validation_shards is not None:
            raise ValueError("give one of run.validation_folder and run.validation_shards")
        return self

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class PriorConfig(Section):
    """Everything that `latent-codec-train` needs to train a diffusion prior."""

    prior: PriorModelConfig
    data: PriorDataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4)
    run: PriorRunConfig = PriorRunConfig()

    @model_validator(mode="after")
    def _condition_has_a_source(self) -> Self:
        if (self.prior.condition == "embeddings") != (self.data.embeddings is not None):
            raise ValueError(
                "prior.condition embeddings and data.embeddings go together: give both or neither"
            )
        return self
