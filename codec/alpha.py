"""The alpha plane of a picture, lossless, as one optional chunk.

A predictor (none, the pixel to the left, or the one above; PNG's idea, RFC 2083 section 6) and LZMA
from the standard library: integers and bytes only, so a plane is the same everywhere. `FORMAT.md`
beside this file specifies the chunk.

Legend: H W rows and columns of the picture.
"""

import lzma
import zlib
from collections.abc import Sequence

import numpy as np
import PIL.Image

from codec.bitstream import BitstreamError, Chunk
from codec.image_modes import Pixels, strips

KIND = "aLPH"

_NONE, _LEFT, _ABOVE = range(3)
_METHODS = (_NONE, _LEFT, _ABOVE)
_DICTIONARY_BYTES = 2**22
# lc, lp, pb and the dictionary are the format's; the rest is the writer's own affair.
_CODE = {"id": lzma.FILTER_LZMA1, "lc": 3, "lp": 0, "pb": 0, "dict_size": _DICTIONARY_BYTES}
_THOROUGH_PIXELS = 2**22  # up to here a tenth fewer bytes are worth twice the time
_TRIAL_PIXELS = 2**20


class AlphaError(BitstreamError):
    """The alpha chunk of a file is malformed, or of a method that this release does not know."""


def encode_alpha(alpha: Pixels) -> Chunk:
    """Codes an alpha plane without loss.

    Args:
        alpha: uint8 (H, W), 0 transparent, 255 opaque.
    """
    assert alpha.ndim == 2
    assert alpha.dtype == np.uint8
    method = _choose_method(alpha)
    effort = 6 | (lzma.PRESET_EXTREME if alpha.size <= _THOROUGH_PIXELS else 0)
    code = lzma.compress(
        _residual(alpha, method), lzma.FORMAT_RAW, filters=[{**_CODE, "preset": effort}]
    )
    return Chunk(KIND, bytes([method]) + code)


def read_alpha(chunks: Sequence[Chunk], width: int, height: int) -> Pixels | None:
    """Returns the alpha plane among the optional chunks of a file, uint8 (H, W), if there is one.

    Args:
        chunks: All optional chunks.
        width: W, which the caller found acceptable.
        height: H, likewise.

    Raises:
        AlphaError: There are several, or the one is malformed.
    """
    bodies = [chunk.body for chunk in chunks if chunk.kind == KIND]
    if not bodies:
        return None
    if len(bodies) > 1:
        raise AlphaError(f"the file has {len(bodies)} alpha chunks; expected one at most")
    method, code = bodies[0][:1], bodies[0][1:]
    if not method or method[0] not in _METHODS:
        raise AlphaError(
            f"the file's alpha chunk has method {method.hex() or 'none'}; this release knows up to "
            f"{max(_METHODS):02x}: update latent-codec, or write the file again"
        )
    plane = np.frombuffer(_unpack(code, width * height), np.uint8).reshape(height, width)
    if method[0] == _NONE:
        return plane.copy()
    return np.cumsum(plane, axis=1 if method[0] == _LEFT else 0, dtype=np.uint8)  # modulo 256


def fill_transparent(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Gives fully transparent pixels the colours around them, and leaves all others as they are.

    What lies under alpha 0 is arbitrary, often black, and an edge towards it would cost bits and
    colour the visible side. Averages of ever larger blocks, weighted by alpha, fill what is
    unknown, interpolated from each level to the next (pull-push: Gortler et al., The Lumigraph,
    SIGGRAPH 1996, section 3.4.1).

    Args:
        pixels: uint8 (H, W, 3), not premultiplied.
        alpha: uint8 (H, W).

    Returns:
        uint8 (H, W, 3): the pixels themselves if none is transparent; white if all are.
    """
    if alpha.all():
        return pixels
    if not alpha.any():
        return np.full_like(pixels, 255)
    half = PIL.Image.fromarray(fill_transparent(*_halve(pixels, alpha)))
    height, width = alpha.shape
    filled = pixels.copy()
    for rows in strips(height, width):
        unknown = alpha[rows] == 0
        if unknown.any():
            box = (0, rows.start / 2, width / 2, rows.stop / 2)
            size = (width, rows.stop - rows.start)
            smooth = np.asarray(half.resize(size, PIL.Image.Resampling.BILINEAR, box))
            filled[rows][unknown] = smooth[unknown]
    return filled


def _halve(pixels: Pixels, alpha: Pixels) -> tuple[Pixels, Pixels]:
    """Averages blocks of 2 x 2, weighted by alpha; a block's weight is the largest in it."""
    height, width = (-(-side // 2) for side in alpha.shape)
    half = np.empty((height, width, 3), np.uint8)
    weight = np.zeros((height, width), np.uint8)
    for rows in strips(height, width):
        both = slice(2 * rows.start, 2 * rows.stop)
        total = np.zeros((rows.stop - rows.start, width, 4), np.uint32)  # weighted colours, weights
        for down, right in np.ndindex(2, 2):
            part = alpha[both][down::2, right::2]
            covered = (slice(part.shape[0]), slice(part.shape[1]))  # odd sides end half a block
            total[covered][..., :3] += pixels[both][down::2, right::2] * part[..., None].astype(
                np.uint32
            )
            total[covered][..., 3] += part
            weight[rows][covered] = np.maximum(weight[rows][covered], part)
        divisor = np.maximum(total[..., 3:], 1)
        half[rows] = (total[..., :3] + divisor // 2) // divisor
    return half, weight


def _choose_method(alpha: Pixels) -> int:
    """The predictor for a plane: none for hard masks, else what Deflate finds best.

    Deflate is ten times faster than LZMA and ranks them alike, where there are soft values.
    """
    rows = max(1, _TRIAL_PIXELS // alpha.shape[1])
    top = max(0, alpha.shape[0] - rows) // 2
    trial = alpha[top : top + rows]
    if np.count_nonzero(np.bincount(trial.ravel())) <= 2:
        return _NONE
    return min(_METHODS, key=lambda method: len(zlib.compress(_residual(trial, method))))


def _residual(alpha: Pixels, method: int) -> bytes:
    """What a predictor leaves, modulo 256."""
    if method == _NONE:
        return alpha.tobytes()
    residual = alpha.copy()
    if method == _LEFT:
        residual[:, 1:] -= alpha[:, :-1]
    else:
        residual[1:] -= alpha[:-1]
    return residual.tobytes()


def _unpack(code: bytes, size_bytes: int) -> bytes:
    """Undoes LZMA; the memory grows with what comes out, and never beyond the claimed size."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_CODE])
    try:
        plane = decoder.decompress(code, max_length=size_bytes + 1)
    except lzma.LZMAError as error:
        raise AlphaError(f"the file's alpha chunk is damaged ({error}); write it again") from error
    if len(plane) != size_bytes or not decoder.eof or decoder.unused_data:
        raise AlphaError(
            f"the file's alpha chunk does not hold {size_bytes} pixels and nothing else; "
            "write it again"
        )
    return plane
