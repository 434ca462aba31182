"""Damaged and forged `.lc` files through decode and info: `python -m tests.fuzz --count 100000`.

Each file is either refused with a typed error or decoded. A file whose checksums were left as they
were may only decode to the very picture of the original; one whose checksums were made right again
only to what its own header says. No file may take long or much memory. What fails is written
beside, with the number that makes it again.
"""

import argparse
import contextlib
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import PIL.Image
from diffusers import AutoencoderTiny

from codec import Codec, LatentCodecError, packing
from codec.autoencoder import LatentAutoencoder
from codec.reports import read_report

MOST_SECONDS = 20.0
MOST_GROWTH = 600 * 2**20
"""Bytes that the process may grow by: torch keeps what the largest picture needed."""


class FuzzError(AssertionError):
    """A file did what none may do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A good file.

    Attributes:
        data: its bytes.
        codec: the model that made it.
        pixels: what it decodes to.
    """

    data: bytes
    codec: Codec
    pixels: bytes


def make_samples(folder: Path) -> list[Sample]:
    """Small files of every kind: gray, colour, alpha, metadata, foreign tables, codes."""
    column = np.linspace(0, 255, 40, dtype=np.uint8)
    picture = np.stack([np.add.outer(column, column[:32] * k) for k in (1, 2, 3)], -1)
    rgb = PIL.Image.fromarray(picture.astype(np.uint8))
    rgb.info["comment"] = "a text"
    exif = PIL.Image.Exif()
    exif[0x010F] = "a camera"
    tagged = folder / "tagged.png"
    rgb.save(tagged, exif=exif)
    rgba = rgb.copy()
    rgba.putalpha(PIL.Image.fromarray(np.add.outer(column, column[:32])))
    codec = Codec.from_pretrained(dtype="float32")
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    )  # fmt: skip
    tiny.save_pretrained(folder / "tiny")
    codes = LatentAutoencoder(
        bottleneck="fsq", block_out_channels=(8, 8, 8, 16), encoder_layers=(0, 0, 0, 1),
        decoder_layers=(0, 0, 0, 1),
    )  # fmt: skip
    codes.save_pretrained(folder / "codes")
    foreign, discrete = (
        Codec.from_pretrained(folder / name, dtype="float32") for name in ("tiny", "codes")
    )
    files = [
        (codec, codec.compress(rgb)),
        (codec, codec.compress(rgb.convert("L"), quality=90)),
        (codec, codec.compress(rgb, step=0.001)),
        (codec, codec.compress(tagged, keep_metadata=True)),
        (codec, codec.compress(rgba, alpha="keep")),
        (foreign, foreign.compress(rgb)),
        (discrete, discrete.compress(rgb)),
    ]
    return [Sample(data, maker, decoded(maker, data)) for maker, data in files]


def decoded(codec: Codec, data: bytes) -> bytes:
    """The picture of a file as bytes, its mode and size in front."""
    picture = codec.decompress(data)
    return f"{picture.mode} {picture.size}".encode() + picture.tobytes()


def damage(rng: random.Random, data: bytes, samples: Sequence[Sample]) -> bytes:
    """One to four random changes of bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[min(place, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            changed[place:place] = rng.randbytes(length)
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            del changed[place:]
        elif kind == 5:
            other = rng.choice(samples).data
            start = rng.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
        else:
            value = rng.choice((0x00, 0x01, 0x7F, 0x80, 0xFF))
            changed[place : place + length] = bytes([value]) * length
    return bytes(changed)


def forge(rng: random.Random, data: bytes, samples: Sequence[Sample]) -> bytes:
    """Chunks changed inside, swapped, repeated or left out, all their checksums right again."""
    chunks = split_chunks(data)
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(len(chunks))
        kind, body = chunks[number]
        what = rng.randrange(8)
        if what < 4:
            chunks[number] = (kind, damage(rng, body, samples) if body else rng.randbytes(3))
        elif what == 4:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
        elif what == 5 and len(chunks) > 1:
            del chunks[number]
        elif what == 6:
            chunks[number] = rng.choice(split_chunks(rng.choice(samples).data))
        else:
            names = (
                b"HEAD",
                b"DATA",
                b"TABL",
                b"aLPH",
                b"eXIF",
                b"iCCP",
                b"tEXT",
                b"zZZZ",
                b"ABCD",
            )
            chunks[number] = (rng.choice(names), body)
    return data[:5] + b"".join(framed(kind, body) for kind, body in chunks)


def split_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a good file."""
    chunks, place = [], 5
    while place < len(data):
        kind, place = data[place : place + 4], place + 4
        size = shift = 0
        while True:
            byte, place = data[place], place + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        chunks.append((kind, data[place : place + size]))
        place += size + 4
    return chunks


def framed(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    length, size = bytearray(), len(body)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    whole = kind + bytes(length) + body
    return whole + zlib.crc32(whole).to_bytes(4, "little")


def check(
    data: bytes,
    sample: Sample,
    *,
    is_forged: bool,
    folder: Path,
    originals: Set[tuple[bytes, bytes]] = frozenset(),
) -> str:
    """Put one file through info and decode; returns what became of it.

    Args:
        data: the file.
        sample: what it was made from.
        is_forged: its checksums were made right again.
        folder: it is written there.
        originals: chunks of good files: one that was cut out or put in whole does no harm.

    Raises:
        FuzzError: it decoded to a picture that it must not decode to.
    """
    path = folder / "file.lc"
    path.write_bytes(data)
    with contextlib.suppress(LatentCodecError):
        read_report(str(path)).lines()
    try:
        file = packing.read_file(data)
        picture = decoded(sample.codec, data)
    except LatentCodecError as error:
        return type(error).__name__
    if picture == sample.pixels:
        return "the same picture"
    if not is_forged and not set(split_chunks(data)) <= originals:
        raise FuzzError("another picture came out of a file whose checksums were not mended")
    size = f"({file.header.width}, {file.header.height})".encode()
    if size not in picture[:40]:
        raise FuzzError(f"a picture of another size than {size!r} came out: {picture[:40]!r}")
    return "another picture, as its mended header says"


def run(
    count: int, seed: int, folder: Path, report: Callable[[int], None] = lambda done: None
) -> Counter[str]:
    """Check so many files; returns how often each thing happened.

    Raises:
        FuzzError: a file crashed, hung, took much memory or gave a wrong picture; it is kept in
            the folder as failed.lc.
    """
    warnings.simplefilter("ignore")
    samples = make_samples(folder)
    for sample in samples:  # memory that good files need is not blamed on bad ones
        decoded(sample.codec, sample.data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes: Counter[str] = Counter()
    originals = {chunk for sample in samples for chunk in split_chunks(sample.data)}
    previous = signal.signal(signal.SIGALRM, _hung)
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        sample = rng.choice(samples)
        is_forged = rng.random() < 0.5
        data = (forge if is_forged else damage)(rng, sample.data, samples)
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            what = check(data, sample, is_forged=is_forged, folder=folder, originals=originals)
            outcomes[what] += 1
        except Exception as error:
            (folder / "failed.lc").write_bytes(data)
            raise FuzzError(f"file {number} of seed {seed}: {error!r}; see failed.lc") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if number % 500 == 0:
            report(number)
    signal.signal(signal.SIGALRM, previous)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if growth > MOST_GROWTH:
        raise FuzzError(f"memory grew by {growth >> 20} MiB")
    outcomes["MiB of growth"] = growth >> 20
    return outcomes


def _hung(number: int, frame: FrameType | None) -> None:
    raise FuzzError(f"a file took over {MOST_SECONDS} s")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="files to try")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()

    def report(done: int) -> None:
        print(f"\r{done:,} of {arguments.count:,}", end="", file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    outcomes = run(arguments.count, arguments.seed, folder, report)
    print(f"\n{arguments.count:,} files in {time.monotonic() - started:.0f} s, none misbehaved")
    for what, times in outcomes.most_common():
        print(f"{times:9,}  {what}")


if __name__ == "__main__":
    main()
