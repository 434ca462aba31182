"""Between the measured points of a rate-distortion curve, and never beyond them.

A curve is a list of points (rate, value). Between neighbours the value is taken as linear in the
logarithm of the rate, in which such curves are nearly straight.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]  # (rate, value), rates above 0, in any order


@dataclass(frozen=True, slots=True)
class Lead:
    """How far one curve stays below another over the rates that both have.

    Attributes:
        lowest_rate: where the comparison starts.
        highest_rate: where it ends.
        least: the other's value minus the first one's, where that is smallest; negative where the
            first curve is not the lower one.
        rate: where that is.
    """

    lowest_rate: float
    highest_rate: float
    least: float
    rate: float


def value_at(points: Points, rate: float) -> float | None:
    """Return the curve's value at a rate, or None outside the measured rates."""
    for (first_rate, first), (second_rate, second) in _segments(points):
        if first_rate <= rate <= second_rate:
            share = _share(math.log(first_rate), math.log(second_rate), math.log(rate))
            return first + share * (second - first)
    return None


def rate_for(points: Points, value: float) -> float | None:
    """Return the least rate at which a falling curve reaches `value`.

    None where it never comes down to it, and where its first point is below it already: then the
    rate is an unknown one below the measured ones.
    """
    for (first_rate, first), (second_rate, second) in _segments(points):
        if first == value:
            return first_rate
        if first < value:
            return None
        if second == value:
            return second_rate
        if second < value:
            share = _share(first, second, value)
            return math.exp(_between(math.log(first_rate), math.log(second_rate), share))
    return None


def least_lead(ours: Points, other: Points, up_to: float) -> Lead | None:
    """Compare two curves at every rate up to `up_to` that `other` has; lower is better.

    Beyond our last point that point counts, for a smaller file may be used at a larger rate. Both
    curves are straight between their points, so the least difference lies at a point of either.

    Returns:
        None where the curves share no rate.
    """
    ours, other = sorted(ours), sorted(other)
    if not ours or not other:
        return None
    lowest, highest = max(ours[0][0], other[0][0]), min(other[-1][0], up_to)
    if lowest > highest:
        return None
    rates = {lowest, highest, *(rate for rate, _ in [*ours, *other] if lowest <= rate <= highest)}
    leads = []
    for rate in sorted(rates):
        theirs, own = value_at(other, rate), value_at(ours, min(rate, ours[-1][0]))
        assert theirs is not None
        assert own is not None
        leads.append((theirs - own, rate))
    least, rate = min(leads)
    return Lead(lowest, highest, least, rate)


def _segments(points: Points) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Pair each point with the next one in rate; a point alone is paired with itself."""
    ordered = sorted(points)
    return list(itertools.pairwise(ordered if len(ordered) != 1 else ordered * 2))


def _share(first: float, second: float, value: float) -> float:
    """How far `value` lies on the way from `first` to `second`, 0 to 1."""
    return (value - first) / (second - first) if second != first else 0.0


def _between(first: float, second: float, share: float) -> float:
    return first + share * (second - first)
