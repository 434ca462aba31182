"""The sections of a training configuration: every setting, its default and its bounds.

Progress, warm-up and schedules are counted in images seen, not in steps, so that they mean the same
at any batch size and number of processes.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from train.contradictions import contradictions

MAX_ACCUMULATION = 64


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network: arguments of `codec.autoencoder.LatentAutoencoder`, or weights to start from."""

    architecture: Literal["latent", "autoencoder_kl"] = Field(
        "latent",
        description="latent: LatentAutoencoder; autoencoder_kl: diffusers' AutoencoderKL in the "
        "shape of Stable Diffusion's, of which latent_channels, block_out_channels and "
        "encoder_layers (one number: blocks a level) are used",
    )
    latent_channels: int = Field(4, ge=1)
    block_out_channels: tuple[int, ...] = (24, 48, 96, 192)
    encoder_layers: tuple[int, ...] = (0, 0, 2, 4)
    decoder_layers: tuple[int, ...] = (0, 0, 2, 4)
    decoder_block_out_channels: tuple[int, ...] | None = None
    bottleneck: Literal["gaussian", "vq", "fsq", "vq2"] = Field(
        "gaussian", description="vq2: a top and a bottom codebook as in VQ-VAE-2"
    )
    posterior_std: float | None = Field(
        0.14, gt=0, description="gaussian: constant standard deviation; null learns it"
    )
    codebook_size: int = Field(4096, ge=2, description="vq, vq2: codes of each codebook")
    codebook_cosine: bool = Field(False, description="vq, vq2: nearest by angle, unit codes")
    fsq_levels: tuple[int, ...] = Field(
        (8, 8, 8, 8), description="fsq: levels of each latent channel"
    )
    num_classes: int | None = Field(
        None, ge=1, description="condition encoder and decoder on one of so many class labels"
    )
    init_from: str | None = Field(
        None,
        description="embedded name or directory that a fine-tuning starts from; the shape is then "
        "that model's, and the fields above are not used",
    )
    freeze_encoder: bool = Field(
        False, description="train the decoder alone; latents stay those of init_from"
    )


class DataConfig(Section):
    """Which images are trained on, and how crops are drawn from them."""

    folders: tuple[str, ...] = Field((), description="folders of images, read recursively")
    lists: tuple[str, ...] = Field(
        (), description="text files with one image path a line, relative to the file"
    )
    webdataset: tuple[str, ...] = Field((), description="WebDataset tar files (glob patterns)")
    datasets: tuple[str, ...] = Field(
        (), description="Parquet files (glob patterns) or Hugging Face dataset directories"
    )
    image_column: str = Field("image", description="of datasets")
    label_column: str = Field("label", description="of datasets; read only if labels is true")
    factors: int = Field(
        0, ge=0, description="images rendered from known factors, instead of photographs"
    )
    exclude: tuple[str, ...] = Field(
        (), description="text files with one image name a line that are never trained on"
    )
    labels: bool = Field(
        False, description="read class labels: name of the folder, .cls of a tar, label_column"
    )
    crop_size: int = Field(128, ge=16, description="side of a training crop, in pixels")
    min_scale: float = Field(
        0.5,
        gt=0,
        le=1,
        description="crops are read at 1 to 1/min_scale times their size and scaled down",
    )
    flip: bool = Field(True, description="mirror half of the crops")
    num_workers: int = Field(
        0, ge=0, description="loader processes; 0 loads in the training process"
    )
    cache: Literal["none", "memory", "device"] = Field(
        "memory", description="where decoded images are kept; device also crops there"
    )
    cache_gib: float = Field(
        4.0, ge=0, description="decoded images are kept while they fit in this"
    )


class LossConfig(Section):
    """Weights of the terms; 0 leaves one out. Reconstruction terms are means over pixel values."""

    l1_weight: float = Field(1.0, ge=0)
    l2_weight: float = Field(0.0, ge=0)
    charbonnier_weight: float = Field(0.0, ge=0, description="sqrt(error^2 + epsilon^2)")
    charbonnier_epsilon: float = Field(1e-3, gt=0)
    multiscale_weight: float = Field(0.0, ge=0, description="L1 at 1/2, 1/4 and 1/8 of the size")
    gradient_weight: float = Field(0.0, ge=0, description="L1 of finite differences")
    wavelet_weight: float = Field(0.0, ge=0, description="L1 of Haar's three detail bands")
    perceptual_weight: float = Field(0.25, ge=0, description="LPIPS")
    perceptual_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    perceptual_backbone: str | None = Field(
        None, description="file of its ImageNet backbone; null: LATENT_CODEC_LPIPS, or a download"
    )
    perceptual_start: int = Field(0, ge=0, description="images seen before LPIPS first counts")
    perceptual_ramp: int = Field(
        0, ge=0, description="images over which its weight then grows to full"
    )
    learned_logvar: bool = Field(
        False,
        description="divide the reconstruction terms by exp(s) and add s, with s learned; with "
        "l1_weight=1 alone this is the likelihood of a Laplace distribution",
    )
    logvar_init: float = Field(0.0, description="s at the start")
    kl_weight: float = Field(
        1e-4, ge=0, description="KL to a unit Gaussian; above 1 with kl_reduction=pixel: beta-VAE"
    )
    kl_reduction: Literal["latent", "pixel"] = Field(
        "latent",
        description="KL in nats as a mean over latent elements, or summed over an image and "
        "divided by its pixel values, as in the evidence lower bound",
    )
    kl_schedule: Literal["constant", "linear", "cyclical"] = "constant"
    kl_warmup: int = Field(
        0, ge=0, description="images over which kl_weight grows: once (linear), or in each cycle"
    )
    kl_cycle: int = Field(0, ge=0, description="images of a cycle of the cyclical schedule")
    free_bits: float = Field(
        0.0, ge=0, description="bits an element of each latent channel that the KL does not charge"
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="rate to hold, in kl_target_unit per latent element; a controller then "
        "moves the weight, starting at kl_weight",
    )
    kl_target_unit: Literal["nats", "bits"] = "bits"
    kl_controller_gain: float = Field(
        0.01, gt=0, le=1, description="relative change of the weight a step, at twice the target"
    )
    commitment_weight: float = Field(0.25, ge=0, description="vq: encoder towards its code")
    tc_weight: float = Field(
        0.0, ge=0, description="FactorVAE: total correlation of vector latents (1x1)"
    )
    tc_learning_rate: float = Field(1e-4, gt=0, description="of its discriminator")
    tc_channels: int = Field(256, ge=1)
    tc_layers: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _cycle_has_a_length(self) -> Self:
        if self.kl_schedule == "cyclical" and not 0 < self.kl_warmup <= self.kl_cycle:
            raise ValueError(
                "kl_schedule cyclical needs kl_cycle > 0 and 0 < kl_warmup <= kl_cycle"
            )
        if self.kl_schedule == "linear" and self.kl_warmup == 0:
            raise ValueError("kl_schedule linear needs kl_warmup > 0")
        if self.kl_target is not None and (self.kl_weight == 0 or self.kl_schedule != "constant"):
            raise ValueError(
                "kl_target needs a kl_weight above 0 to start from, and kl_schedule constant: its "
                "controller moves the weight"
            )
        return self


class AdversarialConfig(Section):
    """The PatchGAN discriminator; disc_weight 0 leaves it out."""

    disc_weight: float = Field(0.0, ge=0)
    disc_start: int = Field(0, ge=0, description="images seen before it counts for the codec")
    disc_warmup: int = Field(
        0, ge=0, description="images before disc_start in which it already learns"
    )
    disc_adaptive: bool = Field(
        False,
        description="multiply disc_weight by the ratio of the gradients of reconstruction and "
        "adversarial loss at the decoder's last layer",
    )
    disc_adaptive_max: float = Field(1e4, gt=0)
    disc_loss: Literal["hinge", "non_saturating"] = "hinge"
    disc_layers: int = Field(3, ge=1, description="strided convolutions")
    disc_channels: int = Field(64, ge=1)
    disc_norm: Literal["none", "group", "batch", "spectral"] = "group"
    disc_learning_rate: float = Field(2e-4, gt=0)
    disc_beta1: float = Field(0.5, ge=0, lt=1)
    disc_beta2: float = Field(0.9, ge=0, lt=1)
    r1_weight: float = Field(0.0, ge=0, description="gradient penalty on real images")
    r1_every: int = Field(16, ge=1, description="steps between penalties, which weigh as much more")
    feature_matching_weight: float = Field(0.0, ge=0)


class CodebookConfig(Section):
    """How a learned codebook (vq, vq2) follows the encoder."""

    decay: float = Field(0.99, gt=0, lt=1, description="of the running means that are the codes")
    kmeans_init: bool = Field(True, description="start from the clusters of the first batch")
    restart_below: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="a code used less than this share of the average use (both running means) is "
        "replaced by a latent of the batch; 0 never",
    )


class RegularizerConfig(Section):
    """What is done to latents between encoder and decoder while training."""

    latent_noise: float = Field(
        0.0, ge=0, description="standard deviation of Gaussian noise added, in raw latent units"
    )
    quantize_step: float | None = Field(
        None,
        gt=0,
        description="round latents to this step before decoding, straight through; replaces the "
        "posterior's noise",
    )
    equivariance_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of batches whose latents are scaled and turned, and must decode to "
        "images scaled and turned alike (EQ-VAE, implicit form)",
    )
    equivariance_min_scale: float = Field(0.25, gt=0, le=1)
    equivariance_rotate: bool = Field(True, description="turn by multiples of 90 degrees")


class RateConfig(Section):
    """A charge for the latents' bits, as a context model that learns along estimates them."""

    rate_weight: float = Field(0.0, ge=0, description="of the estimated bits a pixel; 0: no charge")
    rate_step: float | None = Field(
        None, gt=0, description="in raw latent units; null: that of files, see train.rate.rate_step"
    )
    rate_step_range: float = Field(
        2.0, ge=1, description="each sample's step is log-uniform within this factor of rate_step"
    )
    rate_quantization: Literal["noise", "round"] = Field(
        "noise", description="uniform noise in place of rounding, or rounding, straight through"
    )
    rate_units: int = Field(64, ge=1, description="hidden units of the context model")
    rate_head_units: int = Field(24, ge=1, description="of its head for each channel")
    rate_learning_rate: float = Field(3e-3, gt=0, description="of its AdamW, without decay")
    rate_start: int = Field(0, ge=0, description="images seen before the charge first counts")
    rate_ramp: int = Field(0, ge=0, description="images over which its weight then grows to full")
    rate_warmup: int = Field(0, ge=0, description="images before rate_start in which it learns")


class DistillationConfig(Section):
    """A student that speaks the latent space of a teacher."""

    teacher: str | None = Field(
        None, description="embedded name or directory of any diffusers autoencoder"
    )
    latent_weight: float = Field(
        1.0, ge=0, description="squared error of the student's latents, over the teacher's variance"
    )


class OptimizerConfig(Section):
    """AdamW (or Muon for the convolution kernels), warm-up and cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_images: int = Field(2_000, ge=0)
    final_learning_rate: float = Field(
        0.01, ge=0, le=1, description="share of the rate left at the end"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    ema_power: float = Field(
        0.75, gt=0, description="warm-up of the decay: 1 - (1 + step) ** -power"
    )


class RunConfig(Section):
    """Budget, precision, reproducibility and what is written when."""

    output_dir: str = Field(
        "runs/kl-f8d4", description="checkpoints, log and configuration go here"
    )
    seed: int = Field(0, ge=0, lt=2**15)
    batch_size: int = Field(16, ge=1, description="crops a step and process")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_ACCUMULATION)
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "bf16", description="weights stay float32; fp16 needs a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for more time")
    compile: bool = Field(False, description="torch.compile the network")
    max_images: int = Field(200_000, ge=1, description="crops to train on; the schedule ends here")
    max_minutes: float | None = Field(None, gt=0, description="stop, saved, after this long")
    checkpoint_minutes: float = Field(5.0, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    log_every: int = Field(50, ge=1, description="steps between lines of the log")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="Accelerate's trackers, such as tensorboard or wandb"
    )
    validation_folder: str | None = Field(None, description="held-out images for validation")
    validation_names: str | None = Field(
        None, description="text file that names the held-out images"
    )
    validation_images: int = Field(32, ge=1)
    validation_every: int = Field(20_000, ge=1, description="images between validations")
    best_metric: Literal["auto", "psnr", "lpips"] = Field(
        "auto",
        description="held-out figure that the kept best checkpoint has; auto: LPIPS if trained "
        "with it, else PSNR",
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class TrainConfig(Section):
    """Everything that a run of `latent-codec-train` needs."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    codebook: CodebookConfig = CodebookConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    rate: RateConfig = RateConfig()
    distillation: DistillationConfig = DistillationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        for wrong, message in contradictions(self):
            if wrong:
                raise ValueError(message)
        return self
