"""Statistics of raw latents, streamed, and the same however the images were grouped.

Of each image and channel the sum S and the sum of squares Q are taken in float64, in one fixed
order, and rounded to whole multiples of 2**-96; from there on everything is integers, so sums over
images are exact and merging in any order or grouping gives the same bits.

Means and deviations are over all values. Their standard errors take the image as the unit that was
sampled, for values of one image are alike: with n values in an image, the mean is the ratio
sum(S) / sum(n) and the variance likewise, so their errors follow from the products of S, Q and n
(ratio estimator, Cochran, Sampling Techniques, 1977, section 6; for images of one size it is the
standard error of the images' means).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from codec.header import MAX_CHANNELS
from codec.shards.errors import ShardError
from codec.shards.fields import integer, mapping

Values = NDArray[np.float64]  # (C,)
Integers = tuple[int, ...]  # one a channel, in units of 2**-_BITS

_BITS = 96
_ONE = 1 << _BITS
_MAX_DIGITS = 300


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Sums over images; n values an image and channel, their sum S, the sum of their squares Q.

    Attributes:
        num_images: How many images.
        num_values: Sum of n.
        nn: Sum of n * n.
        s: Sum of S of each channel; this and the rest in units of 2**-96.
        q: Sum of Q.
        ns: Sum of n * S.
        nq: Sum of n * Q.
        ss: Sum of S * S.
        sq: Sum of S * Q.
        qq: Sum of Q * Q.
    """

    num_images: int = 0
    num_values: int = 0
    nn: int = 0
    s: Integers = ()
    q: Integers = ()
    ns: Integers = ()
    nq: Integers = ()
    ss: Integers = ()
    sq: Integers = ()
    qq: Integers = ()

    @classmethod
    def of(cls, raw_latents: NDArray[np.float32]) -> Self:
        """Returns the statistics of one image, (C, h, w), all values finite."""
        flat = raw_latents.reshape(len(raw_latents), -1).astype(np.float64)
        n = flat.shape[1]
        s = tuple(map(_fixed, flat.sum(axis=1).tolist()))
        q = tuple(map(_fixed, np.square(flat).sum(axis=1).tolist()))
        return cls(
            num_images=1,
            num_values=n,
            nn=n * n,
            s=s,
            q=q,
            ns=tuple(n * one for one in s),
            nq=tuple(n * one for one in q),
            ss=tuple(one * one >> _BITS for one in s),
            sq=tuple(one * other >> _BITS for one, other in zip(s, q, strict=True)),
            qq=tuple(one * one >> _BITS for one in q),
        )

    def __add__(self, other: "LatentStatistics") -> "LatentStatistics":
        """Returns the statistics of both, exactly.

        Raises:
            ShardError: They have different numbers of channels.
        """
        if not self.num_images or not other.num_images:
            return self if self.num_images else other
        if self.num_channels != other.num_channels:
            raise ShardError(
                f"found latents of {other.num_channels} channels beside others of "
                f"{self.num_channels}, expected one number of channels in a dataset"
            )
        sums = {
            name: tuple(
                a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True)
            )
            for name in _SUMS
        }
        return LatentStatistics(
            num_images=self.num_images + other.num_images,
            num_values=self.num_values + other.num_values,
            nn=self.nn + other.nn,
            **sums,
        )

    @property
    def num_channels(self) -> int:
        """C; 0 without images."""
        return len(self.s)

    @property
    def mean(self) -> Values:
        """Mean of all values, (C,)."""
        return np.array([float(mean) for mean in self._means()])

    @property
    def std(self) -> Values:
        """Standard deviation of all values (divided by their number), (C,)."""
        return np.array([math.sqrt(one) for one in self._variances()])

    @property
    def mean_standard_error(self) -> Values:
        """Standard error of `mean`, (C,); NaN for fewer than two images."""
        spreads = (
            ss - 2 * mean * ns + mean * mean * self.nn
            for mean, ss, ns in zip(self._means(), *self._parts("ss", "ns"), strict=True)
        )
        return np.array([self._ratio_error(spread) for spread in spreads])

    @property
    def std_standard_error(self) -> Values:
        """Standard error of `std`, (C,), to first order; NaN for fewer than two images."""
        errors = []
        columns = self._parts("ns", "nq", "ss", "sq", "qq")
        for m, variance, ns, nq, ss, sq, qq in zip(
            self._means(), self._variances(), *columns, strict=True
        ):
            # The sum over images of (Q - 2 m S + (m^2 - variance) n)^2, multiplied out.
            c = m * m - variance
            spread = (
                qq + 4 * m * m * ss + c * c * self.nn - 4 * m * sq + 2 * c * nq - 4 * m * c * ns
            )
            deviation = math.sqrt(variance)
            errors.append(self._ratio_error(spread) / (2 * deviation) if deviation else 0.0)
        return np.array(errors)

    @property
    def shift_factor(self) -> float:
        """Mean over all values of all channels: diffusers' `shift_factor`; 0 without values."""
        return float(self._overall()[0])

    @property
    def scaling_factor(self) -> float:
        """1 / deviation over all values of all channels: diffusers' `scaling_factor`."""
        variance = self._overall()[1]
        return 1 / math.sqrt(variance) if variance > 0 else 1.0

    def to_json(self) -> dict[str, Any]:
        """Returns the sums, exactly; decimal texts where other readers would round."""
        sums = {name: [str(one) for one in getattr(self, name)] for name in _SUMS}
        return {
            "images": self.num_images,
            "values": self.num_values,
            "nn": str(self.nn),
            "unit": f"2**-{_BITS}",
            **sums,
        }

    def summary(self) -> dict[str, Any]:
        """Returns what people and trainers want to know, for JSON."""
        arrays = {name: _listed(getattr(self, name)) for name in _SUMMARY}
        return {
            **arrays,
            "shift_factor": self.shift_factor,
            "scaling_factor": self.scaling_factor,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: It is something else.
        """
        sums = {name: _whole_numbers(content.get(name)) for name in _SUMS}
        if content.get("unit") != f"2**-{_BITS}" or len({len(one) for one in sums.values()}) != 1:
            raise ShardError(
                "found statistics that are no sums of latents in units of "
                f"2**-{_BITS}; fetch the file again"
            )
        (nn,) = _whole_numbers([content.get("nn")])
        return cls(integer(content, "images", 0), integer(content, "values", 0), nn, **sums)

    def _means(self) -> list[Fraction]:
        return [Fraction(s, self.num_values * _ONE) for s in self.s]

    def _variances(self) -> list[Fraction]:
        pairs = zip(self._means(), self.q, strict=True)
        # Rounding S and Q can leave a constant channel a hair below zero.
        return [max(Fraction(q, self.num_values * _ONE) - m * m, Fraction(0)) for m, q in pairs]

    def _overall(self) -> tuple[Fraction, Fraction]:
        """Mean and variance over all values of all channels."""
        if not self.num_values:
            return Fraction(0), Fraction(0)
        count = self.num_values * self.num_channels * _ONE
        mean = Fraction(sum(self.s), count)
        return mean, Fraction(sum(self.q), count) - mean * mean

    def _parts(self, *names: str) -> list[list[Fraction]]:
        return [[Fraction(one, _ONE) for one in getattr(self, name)] for name in names]

    def _ratio_error(self, spread: Fraction) -> float:
        """Standard error of sum(y) / sum(n), from the sum of (y - ratio * n)^2 over images."""
        if self.num_images < 2:
            return math.nan
        corrected = max(spread, Fraction(0)) * self.num_images / (self.num_images - 1)
        return math.sqrt(corrected / self.num_values**2)


_SUMS = tuple(field.name for field in fields(LatentStatistics) if field.default == ())
_SUMMARY = ("mean", "mean_standard_error", "std", "std_standard_error")


def statistics_in(content: Mapping[str, Any], name: str) -> LatentStatistics:
    """Returns the statistics in a field of an object.

    Raises:
        ShardError: There are none.
    """
    return LatentStatistics.from_json(mapping(content, name))


def _fixed(value: float) -> int:
    """Returns a finite number in units of 2**-_BITS, rounded down."""
    mantissa, exponent = math.frexp(value)
    shift = exponent - 53 + _BITS
    whole = int(mantissa * 2**53)
    return whole << shift if shift >= 0 else whole >> -shift


def _listed(values: Values) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _whole_numbers(value: object) -> Integers:
    if isinstance(value, list) and len(value) <= MAX_CHANNELS:
        texts = [one for one in value if isinstance(one, str) and len(one) <= _MAX_DIGITS]
        if len(texts) == len(value):
            try:
                return tuple(int(one) for one in texts)
            except ValueError:
                pass
    raise ShardError("found statistics that are no lists of whole numbers; fetch the file again")
