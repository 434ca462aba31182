"""What was found about an entropy coder: its bytes beside others' at the same symbols, its time."""

import json
from dataclasses import asdict, dataclass, field

from rich import box
from rich.table import Table

from eval.rate_distortion import command_line, package_versions
from eval.results import Failure, figure

RIVALS = {  # by column of `CodedImage`
    "order0_image": "order-0\nimage",
    "order0_channels": "order-0\nchannels",
    "zstd": "zstd -19",
}
CODE_RIVALS = {  # where a histogram over all codebooks would mean nothing
    "order0_channels": "order-0\ncodebooks",
    "zstd": "zstd -19",
    "own_tables": "tables\nin file",
}


@dataclass(frozen=True, slots=True)
class CodedImage:
    """The symbols of one image in bytes, coded by several means; fractions are bits.

    Attributes:
        name: path below the evaluated folder.
        num_symbols: of all channels.
        lowest: least symbol.
        highest: greatest symbol.
        file: the whole `.lc` file.
        payload: what the symbols take in it, with tables where they travel in the file.
        estimate: ideal code length of the payload under the model; None where the coder has none.
        order0_image: order-0 entropy with one histogram for the image.
        order0_channels: the same with one histogram for each channel.
        zstd: a frame of zstd over the symbols, channel after channel, as integers of `zstd_type`.
        zstd_type: the narrowest of int8, int16 and int32 that holds them.
        num_pixels: of the image.
        own_tables: payload and tables of a file of codes that brings its own tables; None for
            latents.
    """

    name: str
    num_symbols: int
    lowest: int
    highest: int
    file: int
    payload: int
    estimate: float | None
    order0_image: float
    order0_channels: float
    zstd: int
    zstd_type: str
    num_pixels: int
    own_tables: int | None = None


@dataclass(frozen=True, slots=True)
class CodingRow:
    """All images at one quality.

    Attributes:
        quality: 1 to 100; None for models of codes.
        images: one entry an image.
    """

    quality: float | None
    images: tuple[CodedImage, ...]

    def total(self, column: str) -> float:
        """Add a column up over the images."""
        return float(sum(getattr(image, column) for image in self.images))

    def rivals(self) -> dict[str, str]:
        """Return columns of other means with their titles, for latents or for codes."""
        has_codes = any(image.own_tables is not None for image in self.images)
        return CODE_RIVALS if has_codes else RIVALS

    @property
    def bits_per_symbol(self) -> float | None:
        """Bits of the payload a symbol, over all images; None without any."""
        return 8 * self.total("payload") / self.total("num_symbols") if self.images else None

    @property
    def rate_bpp(self) -> float | None:
        """Bits of the whole files a pixel, over all images; None without any."""
        return 8 * self.total("file") / self.total("num_pixels") if self.images else None

    def gain(self, rival: str, ours: str = "payload") -> float:
        """How many per cent fewer bytes ours are than the rival's, over all images."""
        theirs = self.total(rival)
        return 100 * (1 - self.total(ours) / theirs) if theirs else 0.0

    @property
    def deviation(self) -> float | None:
        """How many per cent the estimate is off the payload, over all images."""
        if any(image.estimate is None for image in self.images) or not self.total("payload"):
            return None
        return 100 * (self.total("estimate") / self.total("payload") - 1)


@dataclass(frozen=True, slots=True)
class CodingTimes:
    """Medians of encoding and decoding 512x512 pixels, in milliseconds.

    Attributes:
        runs: rounds, each of all four, after one to warm up.
        threads: processor threads of torch.
        network: device and dtype.
        network_encode_ms: the network alone, from floats to latents.
        network_decode_ms: the network alone, from latents to floats.
        entropy_encode_ms: symbols to payload.
        entropy_decode_ms: payload to symbols.
    """

    runs: int
    threads: int
    network: str
    network_encode_ms: float
    network_decode_ms: float
    entropy_encode_ms: float
    entropy_decode_ms: float


@dataclass(frozen=True, slots=True)
class CodingReport:
    """What was found about a model's entropy coder.

    Attributes:
        model: its name.
        coder_id: as its files name it.
        rows: one a quality.
        times: None where no image could be read.
        errors: images that were left out.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    model: str
    coder_id: str
    rows: tuple[CodingRow, ...]
    times: CodingTimes | None
    errors: tuple[Failure, ...]
    versions: dict[str, str] = field(default_factory=package_versions)
    command: str = field(default_factory=command_line)

    def to_json(self) -> str:
        """Return the report with its gains as JSON, strictly: no NaN, no Infinity."""
        content = asdict(self)
        for row, entry in zip(self.rows, content["rows"], strict=True):
            entry["estimate_deviation_percent"] = row.deviation
            entry["bits_per_symbol"], entry["rate_bpp"] = row.bits_per_symbol, row.rate_bpp
            entry["gain_percent"] = {
                ours: {rival: row.gain(rival, ours) for rival in row.rivals()}
                for ours in ("payload", "file")
            }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def coding_table(report: CodingReport) -> Table:
    """Lay the bytes out for a terminal, summed over the images."""
    num_images = len(report.rows[0].images)
    table = Table(
        title=f"{report.model}: bytes of {num_images} images at the same symbols, and how many "
        "per cent fewer our payload (our whole file) is",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for title in ("quality", "symbols", "file", "payload", "estimate\noff %"):
        table.add_column(title, justify="right", no_wrap=True)
    rivals = report.rows[0].rivals()
    for title in rivals.values():
        table.add_column(title, justify="right", no_wrap=True)
        table.add_column("fewer %", justify="right", no_wrap=True)
    for row in report.rows if num_images else ():
        lowest = min(image.lowest for image in row.images)
        highest = max(image.highest for image in row.images)
        gains = []
        for rival in rivals:
            gains.append(figure(row.total(rival), 0))
            gains.append(f"{row.gain(rival):.1f} ({row.gain(rival, 'file'):.1f})")
        table.add_row(
            "-" if row.quality is None else f"{row.quality:g}",
            f"{lowest}..{highest}",
            figure(row.total("file"), 0),
            figure(row.total("payload"), 0),
            figure(row.deviation, 3),
            *gains,
        )
    return table


def remarks(report: CodingReport) -> list[str]:
    """Say what the table leaves out: rates, the worst estimate, wide symbols, times."""
    found = []
    for row in report.rows:
        if row.bits_per_symbol is not None and row.rate_bpp is not None:
            at = "" if row.quality is None else f"quality {row.quality:g}: "
            found.append(
                f"{at}{row.bits_per_symbol:.3f} bits a symbol; whole files {row.rate_bpp:.4f} bpp"
            )
    every = [image for row in report.rows for image in row.images]
    estimates = [(i.estimate, i.payload) for i in every if i.estimate is not None and i.payload]
    if estimates:
        worst = max(abs(100 * (estimate / payload - 1)) for estimate, payload in estimates)
        found.append(f"the estimate of no single image is off by more than {worst:.2f} %")
    wide = [image for image in every if image.zstd_type != "int8"]
    if wide:
        kinds = " and ".join(sorted({image.zstd_type for image in wide}))
        found.append(
            f"{len(wide)} of {len(every)} times a symbol does not fit int8: zstd got {kinds} there"
        )
    times = report.times
    if times is not None:
        found.append(
            f"512x512 pixels, network in {times.network}, {times.threads} threads, medians of "
            f"{times.runs}:"
        )
        for verb, entropy, network in (
            ("encoding", times.entropy_encode_ms, times.network_encode_ms),
            ("decoding", times.entropy_decode_ms, times.network_decode_ms),
        ):
            found.append(
                f"entropy {verb} {entropy:.1f} ms, {100 * entropy / network:.1f} % of the "
                f"network's {network:.1f} ms"
            )
    return found
