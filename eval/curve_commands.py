"""The commands `latent-codec-eval rd` and `latent-codec-eval coder`.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Json, Model
from eval.terminal import (
    EXTRA_MODULES,
    Images,
    Limit,
    LpipsBackbone,
    LpipsNet,
    LpipsNetwork,
    NoLpips,
    check_lpips_options,
    chosen_lpips,
    print_problems,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from codec.pipeline import Codec
    from eval.file_codecs import FileCodec

OURS = "ours"
CODEC_NAMES = (OURS, "jpeg", "jpeg444", "webp", "avif", "avif444")
_EVERY = ""  # the key of qualities that were given for no codec in particular
_OUR_QUALITIES = tuple(range(10, 101, 10))


def rd(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for rd.json, .csv, .md.")
    ],
    codecs: Annotated[
        str, typer.Option("--codecs", help=f"Some of {', '.join(CODEC_NAMES)}.")
    ] = "ours,jpeg,webp,avif",
    qualities: Annotated[
        list[str] | None,
        typer.Option(
            "--qualities",
            metavar="[CODEC=]N,N,...",
            help="1 to 100, for one codec or all, repeatable; else each codec's own range. Ours "
            "always has the model's default.",
        ),
    ] = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    lpips_backbone: LpipsBackbone = None,
    lpips_net: LpipsNetwork = LpipsNet.SQUEEZE,
    no_lpips: NoLpips = False,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure rate and distortion over qualities, beside classic codecs and unquantised latents.

    What was measured before is not measured again: a run that was stopped goes on.

    \b
    Example:
      latent-codec-eval rd photos/ -o results/
      latent-codec-eval rd photos/ -o results/ --codecs ours,avif --qualities ours=40,50,60
    """
    names = _codec_names(codecs)
    chosen = _chosen_qualities(qualities or [], names)
    check_lpips_options(lpips_backbone, no_lpips)
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec.images import find
        from eval.rate_curve import CurveMeasurer, num_trips
        from eval.rate_report import to_json, to_markdown, write_report
        from eval.result_cache import CACHE_FILE, ResultCache

    paths = find([images])[:limit]
    cache = ResultCache(output / CACHE_FILE)  # a wrong place must show before the work
    distance, notes = chosen_lpips(lpips_net, lpips_backbone, no_lpips)
    contestants: list[FileCodec] = []
    if OURS in names:
        from codec.pipeline import Codec

        codec = Codec.from_pretrained(model, device=device, dtype=dtype)
        contestants += _our_codecs(codec, chosen)
        distance = distance.to(codec.device) if distance is not None else None
    contestants += _classic_codecs([name for name in names if name != OURS], chosen)
    with progress("Measuring", len(paths) * num_trips(contestants)) as advance:
        report = CurveMeasurer(cache, distance).measure(
            contestants, paths, folder=Path(images), notes=notes, advance=advance
        )
    written = write_report(report, output)
    print(to_json(report) if as_json else to_markdown(report), end="")
    if not as_json:
        print(f"\nwritten: {', '.join(map(str, written))}")
    print_problems(report.notes, report.errors)
    raise typer.Exit(1 if report.errors else 0)


def coder(
    images: Images,
    qualities: Annotated[
        str | None,
        typer.Option("--qualities", metavar="N,N,...", help="1 to 100; else 10, 20, ... 90."),
    ] = None,
    model: Model = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed rounds.")] = 9,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Processor threads.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the entropy coder's bytes with order-0 entropy and zstd, its time with the network's.

    \b
    Example:
      latent-codec-eval coder photos/ --qualities 30,50,70
    """
    asked = None if qualities is None else _numbers(qualities)
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec.images import find
        from codec.pipeline import Codec
        from eval.coding_report import coding_table, remarks
        from eval.entropy_coding import measure_coding

    paths = find([images])[:limit]
    codec = Codec.from_pretrained(model, device=device, dtype=dtype)
    with progress("Coding", len(paths)) as advance:
        report = measure_coding(
            codec,
            paths,
            qualities=_our_qualities(codec, asked, _OUR_QUALITIES[:-1]),
            folder=Path(images),
            runs=runs,
            threads=threads,
            advance=advance,
        )
    if as_json:
        print(report.to_json(), end="")
    else:
        print_table(coding_table(report))
        print("\n".join(remarks(report)))
    print_problems((), report.errors)
    raise typer.Exit(1 if report.errors else 0)


def _codec_names(text: str) -> list[str]:
    """Return the codecs that a user names, ours first."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CODEC_NAMES:
            raise typer.BadParameter(
                f"found {name!r}, expected some of {', '.join(CODEC_NAMES)}",
                param_hint="'--codecs'",
            )
    return sorted(dict.fromkeys(names), key=lambda name: name != OURS)


def _chosen_qualities(given: Sequence[str], names: Sequence[str]) -> dict[str, list[int]]:
    """Return the qualities that a user asks for, by codec; those for all under `_EVERY`."""
    chosen: dict[str, list[int]] = {}
    for text in given:
        name, sign, numbers = text.rpartition("=")
        if sign and name not in names:
            raise typer.BadParameter(
                f"found {name!r} before '=', expected one of {', '.join(names)}",
                param_hint="'--qualities'",
            )
        chosen[name] = _numbers(numbers)
    return chosen


def _numbers(text: str) -> list[int]:
    """Return distinct qualities in rising order."""
    try:
        numbers = {int(word) for word in text.split(",")}
    except ValueError:
        numbers = {0}
    if not all(1 <= number <= 100 for number in numbers):
        raise typer.BadParameter(
            f"found {text!r}, expected whole numbers from 1 to 100 with commas between them",
            param_hint="'--qualities'",
        )
    return sorted(numbers)


def _our_codecs(codec: "Codec", chosen: Mapping[str, list[int]]) -> "list[FileCodec]":
    """Return the model, and its autoencoder alone."""
    from eval.file_codecs import ModelCodec, UnquantizedLatents

    usual = chosen.get(_EVERY, _OUR_QUALITIES)
    return [
        ModelCodec(codec, _our_qualities(codec, chosen.get(OURS), usual)),
        UnquantizedLatents(codec),
    ]


def _our_qualities(
    codec: "Codec", asked: Sequence[int] | None, usual: Sequence[int]
) -> tuple[int | None, ...]:
    """Return our qualities with the default among them; None alone for a model of codes."""
    default = codec.info.default_quality if codec.info is not None else None
    if default is not None:
        return tuple(sorted({*(usual if asked is None else asked), default}))
    if asked is not None:
        raise typer.BadParameter(
            f"found some for {codec.name}, expected none: it has codes",
            param_hint="'--qualities'",
        )
    return (None,)


def _classic_codecs(names: Sequence[str], chosen: Mapping[str, list[int]]) -> "list[FileCodec]":
    """Return classic codecs with the qualities that were asked for, or their own."""
    from eval.file_codecs import CLASSIC

    asked = {name: chosen.get(name, chosen.get(_EVERY)) for name in names}
    return [
        CLASSIC[name] if numbers is None else replace(CLASSIC[name], qualities=tuple(numbers))
        for name, numbers in asked.items()
    ]
