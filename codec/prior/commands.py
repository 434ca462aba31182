"""latent-codec sample: images that nobody has photographed."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from codec.console import Debug, Device, Dtype, Force


class SamplerName(StrEnum):
    """Names that `codec.prior.sampling.make_sampler` understands."""

    AUTO = "auto"
    DDIM = "ddim"
    DPM = "dpm++"
    EULER = "euler"
    UNIPC = "unipc"


def sample(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for images, a contact sheet, settings.")
    ],
    prior: Annotated[
        str | None,
        typer.Option("--prior", "-p", metavar="NAME|DIR", help="The embedded one by default."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            "-c",
            metavar="NAME",
            help="What to show; several take turns, 'none' is no class. All classes by default.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--num", "-n", min=1, help="How many images.")] = 16,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Of the sampler.")] = 25,
    guidance: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="How strongly the class counts; 1 for none.")
    ] = 3.0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="Of the first image; the others count on.")
    ] = 0,
    sampler: Annotated[
        SamplerName, typer.Option(help="Another sampler than the prior's own.")
    ] = SamplerName.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    image: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Change this image instead of noise.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="With an image: how much is made anew.")
    ] = 0.6,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="With --image: white where something new shall be."),
    ] = None,
    between_seeds: Annotated[
        tuple[int, int] | None, typer.Option(help="Go from one seed to another in -n images.")
    ] = None,
    between_images: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Go from one image to another in -n images.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Token priors: 1 draws as learned.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Token priors: draw from the k likeliest codes.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Token priors: from the likeliest of so much share."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Generate images with a prior: from noise, from an image, or between two.

    Image i has seed --seed + i, whatever the batch. The same command goes on after an interruption;
    a larger -n adds images.

    \b
    Example:
      latent-codec sample -n 16 -o samples/
      latent-codec sample --class dress -n 16 --steps 25 --guidance 3 -o dresses/
      latent-codec sample --image shirt.jpg --strength 0.5 --class shirt -n 4 -o shirts/
      latent-codec sample --image shirt.jpg --mask sleeves.png --class shirt -n 4 -o filled/
      latent-codec sample --between-seeds 1 7 --class shoes -n 8 -o between/
      latent-codec sample --between-images a.jpg b.jpg --class hat -n 8 -o between/
      latent-codec sample --prior my-token-prior --top-k 100 --temperature 0.9 -o samples/
    """
    del debug
    modes = [image is not None, between_seeds is not None, between_images is not None]
    if sum(modes) > 1:
        raise typer.BadParameter(
            "give one of --image, --between-seeds and --between-images", param_hint="'--image'"
        )
    if mask is not None and image is None:
        raise typer.BadParameter("goes with --image", param_hint="'--mask'")
    if any(modes[1:]) and count < 2:
        raise typer.BadParameter("a way between two takes 2 images or more", param_hint="'-n'")
    from codec.prior.generation import Wish, generate

    wish = Wish(
        classes=tuple(classes or ()),
        count=count,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler.value,
        batch_size=batch_size,
        image=image,
        strength=strength,
        mask=mask,
        between_seeds=between_seeds,
        between_images=between_images,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    made = generate(prior, wish, output, device=device, dtype=dtype, force=force)
    print(f"{made} images in {output}, beside contact-sheet.png")
