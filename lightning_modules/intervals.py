"""Intervals of shares."""

import math


def wilson(right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return Wilson's score interval of a share `right` / `count`; `z` is the normal quantile, by default of 95 %."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (middle - half if right else 0.0), (middle + half if right < count else 1.0)  # 0 and 1 without rounding
