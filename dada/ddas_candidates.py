"""The candidate operations of DDAS: every op of a search space crossed with a few magnitudes.

    value(m) = the formula of RandAugment, which DDAS follows: 3 m degrees, 0.03 m shear, m pixels,
               4 - trunc(0.4 m) bits (0 and less: a black image), threshold 256 - trunc(25.6 m) (0 and
               less: full inversion), factor 0.18 m + 0.1, cutout 2 m pixels

K candidates. An op without magnitude is one candidate, an op with magnitude one for each m; the candidates
of an op stand together, in the order of the search space (the slot order of the released code).

    ddas            8 + 11 x {0, 2, 10, 14}: the 52 of the released CIFAR code
    ddas_imagenet   8 + 12 x {7, 14}: the 32 of the released ImageNet code
    ddas_68         8 + 12 x {2, 6, 10, 14, 18}: the only way to the paper's 68 that the ops of the
                    released code allow; the paper's five magnitudes are not known, these are a guess
    ddas_sanity     9 + 10 x {5}: section 4.1 of the paper, K = 19; at 5 the four enhancers do nothing

In every other search space magnitudes are levels in [0, 1]. The released code runs every op with magnitude
at m = 28, whatever its label says, because its closures share a loop variable: `as_released`.

Deviation: cutout is that of `op_table` in colour and in the rounding of its corner.

Copy with it: op_table.py.

Reference: Liu et al. 2021, section 3.5.3; Cubuk et al. 2019, arXiv:1909.13719.
"""

from typing import NamedTuple

from dada import op_table

MAGNITUDES = {
    "ddas": (0.0, 2.0, 10.0, 14.0),
    "ddas_imagenet": (7.0, 14.0),
    "ddas_68": (2.0, 6.0, 10.0, 14.0, 18.0),
    "ddas_sanity": (5.0,),
}
OTHER_MAGNITUDES = (0.25, 0.5, 0.75, 1.0)
LARGEST = 30.0
_RELEASED = 28.0  # what the loop variable held when the ops ran


class Candidates(NamedTuple):
    """K pairs of an op and a level; hashable."""

    row: tuple[int, ...]  # row of the search space
    level: tuple[float, ...]  # in [0, 1]


def level(row: op_table.OpRow, magnitude: float) -> float:
    """The level in [0, 1] at which a row of a ddas space has the value of a magnitude in 0 .. 30."""
    if row.unit == "bits":
        return (row.low - max(0, 4 - int(0.4 * magnitude))) / (row.low - row.high)
    if row.unit == "threshold":
        return (row.low - max(0, 256 - int(25.6 * magnitude))) / (row.low - row.high)
    return magnitude / 32.0


def candidates(space: op_table.SearchSpace, magnitudes: tuple[float, ...] | None = None) -> Candidates:
    """Crosses the ops of a search space with magnitudes.

    Args:
      space: R rows.
      magnitudes: numbers in [0, 30] in a ddas space, in [0, 1] in others; None for those of the space.

    Returns:
      K candidates.

    Raises:
      ValueError: no magnitude, one out of range, or one given twice.
    """
    is_ddas = space.name in MAGNITUDES
    if magnitudes is None:
        magnitudes = MAGNITUDES.get(space.name, OTHER_MAGNITUDES)
    largest = LARGEST if is_ddas else 1.0
    if not magnitudes or len(set(magnitudes)) < len(magnitudes):
        raise ValueError(f"magnitudes: got {magnitudes}, expected one or more different numbers")
    if not all(0.0 <= magnitude <= largest for magnitude in magnitudes):
        raise ValueError(f"magnitudes: got {magnitudes}, expected numbers in [0, {largest:g}]")
    pairs = [
        (index, (level(row, magnitude) if is_ddas else magnitude) if row.unit else 0.0)
        for index, row in enumerate(space.rows)
        for magnitude in (magnitudes if row.unit else (0.0,))
    ]
    return Candidates(*zip(*pairs))


def as_released(space: op_table.SearchSpace) -> Candidates:
    """The candidates that the released code runs: as many, but all those with magnitude at m = 28.

    Raises:
      ValueError: not one of the ddas spaces.
    """
    if space.name not in MAGNITUDES:
        known = ", ".join(MAGNITUDES)
        raise ValueError(f"search space: got {space.name!r}, but the released code has only {known}")
    rows = candidates(space).row
    levels = (level(space.rows[row], _RELEASED) if space.rows[row].unit else 0.0 for row in rows)
    return Candidates(rows, tuple(levels))
