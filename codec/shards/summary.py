"""stats: what a finished dataset holds, in lines for people or as JSON."""

import math
from collections.abc import Iterator
from typing import Any

from codec.shards.manifest import Manifest


def summary_lines(manifest: Manifest) -> Iterator[str]:
    """Yields what `stats` prints."""
    model, form = manifest.model, manifest.form
    made = f"{form.content} in {form.container}"
    if manifest.quality is not None:
        made += f", quality {manifest.quality:.4g}"
    if form.posterior:
        made += ", with log variances"
    ids = ", ".join(
        f"{name} {value}"
        for name, value in (("latents", model.latent_id), ("coder", model.coder_id))
        if value
    )
    yield f"model       {model.name}{f' ({ids})' if ids else ''}"
    yield f"content     {made}"
    yield (
        f"images      {manifest.num_images:,}, {manifest.num_records:,} records, "
        f"{manifest.num_errors:,} errors"
    )
    grids = sorted(manifest.grids.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{columns}x{rows}: {count:,}" for (rows, columns), count in grids[:8])
    more = f" and {len(grids) - 8} more" if len(grids) > 8 else ""
    yield f"latents     {manifest.latent_channels} channels of {shown or 'nothing'}{more}"
    labels = "more than are counted" if manifest.labels is None else f"{len(manifest.labels):,}"
    yield f"labels      {labels}; captions {manifest.num_captions:,}"
    if not manifest.num_records:
        return
    each = manifest.size_bytes / manifest.num_records
    yield (
        f"bytes       {manifest.size_bytes:,} in {len(manifest.shards)} shards, "
        f"{each:,.0f} a record, {bits_per_pixel(manifest):.3f} "
        f"bits a pixel; {overhead(manifest):+.1%} beside the records"
    )
    statistics = manifest.statistics
    yield (
        f"scaling     scaling_factor {statistics.scaling_factor:.6f}, shift_factor "
        f"{statistics.shift_factor:.6f} measured; the model's own "
        f"{manifest.scaling.scaling_factor:g} and {manifest.scaling.shift_factor:g}"
    )
    yield "channel           mean  +- standard error          std  +- standard error"
    columns = (
        statistics.mean,
        statistics.mean_standard_error,
        statistics.std,
        statistics.std_standard_error,
    )
    for channel, numbers in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        mean, mean_error, std, std_error = (_shown(number) for number in numbers)
        yield f"{channel:7d}  {mean:>13s}  {mean_error:>17s}  {std:>11s}  {std_error:>17s}"


def summary(manifest: Manifest) -> dict[str, Any]:
    """Returns the manifest without its list of shards and exact sums, and what follows from it."""
    content = manifest.to_json()
    del content["shards"], content["statistics"]
    content["num_shards"] = len(manifest.shards)
    if manifest.num_records:
        content["bits_per_pixel"] = bits_per_pixel(manifest)
        content["overhead"] = overhead(manifest)
    return content


def bits_per_pixel(manifest: Manifest) -> float:
    """Returns the bits of all shards for each pixel that latents stand for, padding included."""
    cells = sum(rows * columns * count for (rows, columns), count in manifest.grids.items())
    return 8 * manifest.size_bytes / (cells * manifest.factor**2)


def overhead(manifest: Manifest) -> float:
    """Returns what part the shards are larger than their records."""
    return manifest.size_bytes / manifest.payload_bytes - 1


def _shown(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.6f}"
