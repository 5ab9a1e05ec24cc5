"""Prints the evidence that the parts of the library do what they say; exits with 1 if a line fails.

    python -m experiments.verify [--seed=0]

Five tables, each line with its verdict, in a few minutes on two CPU cores:
    ops            the pixels of every op against Pillow's; values found again by descent
    hypergradient  exact and finite-difference, against closed forms and differenced losses
    estimators     bias and variance of policy gradients against the enumeration of every draw
    official       RELAX as the released DADA code uses it is REINFORCE
    score          forms of DADA's score, by how often a planted op scores highest
It reads the embedded images and writes nothing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import PIL
from absl import flags

from experiments.data import datasets
from experiments.measure import verify_estimators, verify_hypergradient, verify_ops, verify_score
from experiments.runs import command_line, run_folder


class Part(NamedTuple):
    """A table: its lines come as named tuples that start with a name and end with `passed`."""

    title: str
    explanation: str
    line: type
    lines: Callable[[int], Iterable[NamedTuple]]


def _op_lines(seed: int) -> Iterator[verify_ops.OpLine]:
    return verify_ops.op_lines(seed, datasets.load("embedded").train_images)


def _score_lines(seed: int) -> Iterator[verify_score.ScoreLine]:
    return verify_score.score_lines(seed, datasets.load("embedded"))


PARTS = (
    Part(
        "Ops",
        f"""\
Pixels: {verify_ops.NUM_VALUES} values over the range of the op, on real images, noise and constants; none
may differ from Pillow's. Level gradient: from y = op(x, v*), descent on mean |op(x, v) - y|^2 from a
quarter of the range away must find v* (to {100 * verify_ops.TOLERANCE:.0f} % of the range; bits: the
same whole number) for at least {verify_ops.ENOUGH} of {verify_ops.NUM_TARGETS} targets.""",
        verify_ops.OpLine,
        _op_lines,
    ),
    Part(
        "Hypergradient",
        """\
|gradient - expected| / |expected| in float64. The quadratic problem has a closed form; WRN-10-1 on images
of 8 x 8 is compared with differences of its validation loss one step later, and of its gradients.""",
        verify_hypergradient.HypergradientLine,
        verify_hypergradient.hypergradient_lines,
    ),
    Part(
        "Estimators",
        f"""\
A pair policy over 4 ops, one planted; {verify_estimators.NUM_DRAWS:,} draws for each estimator,
in groups of {verify_estimators.GROUP}. Bias: |mean - exact|, exact by enumeration of
every draw; unbiased is within {verify_estimators.STANDARD_ERRORS:g} standard errors. Variance: of one draw,
over all entries; RELAX must be below REINFORCE with the same costs. Its control variate was trained before,
on other draws.""",
        verify_estimators.EstimatorLine,
        verify_estimators.estimator_lines,
    ),
    Part(
        "Official RELAX",
        """\
The released code takes RELAX at two losses and subtracts. Largest difference from REINFORCE on the
same draws, over the largest entry of REINFORCE; 15 ops, a Q network with weights far from zero, float64.""",
        verify_estimators.OfficialLine,
        verify_estimators.official_relax_lines,
    ),
    Part(
        "Score",
        f"""\
WRN-10-1 after some steps of a search whose policy stays uniform. {len(verify_score.OPS)} ops are planted
one at a time on {verify_score.NUM_VALID} batches of {verify_score.VALID} validation images: gradient v.
Each op acts on {verify_score.NUM_GROUPS} groups of {verify_score.GROUP} training images: gradient g.
First: planted ops with the highest mean score. Distance: to the mean of the other ops, in standard deviations
of one score; the median. A form that has more planted ops first than the cosine fails.""",
        verify_score.ScoreLine,
        _score_lines,
    ),
)


def _text(value) -> str:
    if isinstance(value, bool):
        return "ok" if value else "FAIL"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:#.2g}" if isinstance(value, float) else value


def _row(names: list[str], cells: list[str]) -> str:
    """Cells under their names: the first to the left, the last as it is, the others to the right."""
    middle = (f"{cell:>{max(10, len(name)) + 2}}" for name, cell in zip(names[1:-1], cells[1:-1]))
    return f"  {cells[0]:<42}{''.join(middle)}  {cells[-1]}"


def header() -> str:
    """The device and the versions that the numbers were made with."""
    environment = {**run_folder.environment(), "Pillow": PIL.__version__}
    names = ("python", "jax", "numpy", "Pillow")
    return (
        "device    {device_kind} ({platform}, {cpu_count} CPU cores)\n".format(**environment)
        + f"versions  {', '.join(f'{name} {environment[name]}' for name in names)}"
    )


def verify(seed: int, parts: tuple[Part, ...]) -> tuple[int, int]:
    """Prints the tables line by line as they come; returns (lines, lines that fail)."""
    verdicts = []
    for number, part in enumerate(parts, 1):
        begin = time.perf_counter()
        print(f"\n{number}/{len(parts)} {part.title}\n{part.explanation}", flush=True)
        names = [name.replace("_", " ") for name in (*part.line._fields[:-1], "verdict")]
        print(_row(names, names), flush=True)
        for line in part.lines(seed):
            verdicts.append(line.passed)
            print(_row(names, [_text(value) for value in line]), flush=True)
        print(f"  {time.perf_counter() - begin:.0f} s", flush=True)
    return len(verdicts), verdicts.count(False)


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.integer("seed", 0, "Seed of everything random.", 0, command_line.MAX_SEED)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    command_line.require_no_arguments(arguments)
    print(header())
    count, failed = verify(values.seed, PARTS)
    print(f"\n{count - failed} of {count} lines ok" + (f", {failed} FAIL" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    command_line.run(define, main)
