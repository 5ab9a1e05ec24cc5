"""Evidence for DADA's cosine: forms of the score, by how well they tell a planted op from the others.

Symbols as in `dada.searches.dada.cosine`. An op is planted on validation images, whose gradient is v, and
every op in turn is applied to training images, whose gradient is g. The planted op should score highest.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from dada import models, ops
from dada.gradients import bilevel
from dada.searches import dada
from dada.searches.losses import clean_losses
from dada.training import sgd
from experiments.data import datasets, planting

SPACE = ops.search_space("directed", ("Rotate90", "FlipUD"))
# Each changes an image visibly; ops with directions go both ways or one.
OPS = (
    *("ShearX+", "ShearX-", "TranslateX+", "TranslateY-", "Rotate+", "Rotate-", "Invert", "Equalize"),
    *("Solarize", "Contrast-", "Brightness+", "Brightness-", "Rotate90", "FlipUD"),
)
PLANTED_LEVEL, LEVEL = 0.8, 0.5
STEPS = (5, 40)  # of training, before the scores are taken
NUM_GROUPS, GROUP = 6, 16  # of training images under an op
NUM_VALID, VALID = 3, 128  # batches of validation images; a batch serves every third group
_LEARNING_RATE = 0.05
MIXED = "< v, g >, batches of all ops (the paper)"
OWN, SAME, COSINE = "< v, g >, an op's own images", "< v, g >, same images", "cos(v, g), same images"


class ScoreLine(NamedTuple):
    """What a form of the score says of every op of the list, each planted once."""

    score: str
    steps: int  # of training
    first: str  # planted ops that score highest, of all
    mean_rank: float  # of a planted op among all
    distance: float  # median over planted ops, see `ranks_and_distances`
    passed: bool


class _Images(NamedTuple):
    """Batches of the n ops: by group the same ones, by group an op's own, and those to validate with."""

    same: list[list[sgd.Batch]]  # [n][groups]
    own: list[list[sgd.Batch]]  # [n][groups]
    valid: list[list[sgd.Batch]]  # [n][batches]


def scores(valid: jax.Array, own: jax.Array, same: jax.Array) -> dict[str, jax.Array]:
    """All forms but the paper's, of one group.

    Args:
      valid: [planted ops, P], v with each op planted.
      own, same: [ops, P], g of each op on images of its own, and on the same images.

    Returns:
      [planted ops, ops] by form.
    """
    cosines = jax.vmap(jax.vmap(bilevel.cosine, (None, 0)), (0, None))
    return {OWN: valid @ own.T, SAME: valid @ same.T, COSINE: cosines(valid, same)}


def ranks_and_distances(of_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each planted op by mean score, 1 is the highest, and its distance to the others.

    Args:
      of_groups: [groups, planted ops, ops]. The mean over the ops is taken off, as a baseline does.

    Returns:
      ([planted ops], [planted ops]): ranks; mean score less that of the other ops, in standard deviations of
      the score of one op in one group.
    """
    relative = of_groups - of_groups.mean(2, keepdims=True)
    mean, planted = relative.mean(0), np.diagonal(relative.mean(0))
    others = (mean.sum(1) - planted) / (len(planted) - 1)
    deviation = np.sqrt(relative.var(0, ddof=1).mean(1))
    return 1 + (mean > planted[:, None]).sum(1), (planted - others) / deviation


def _batches(name: str, level: float, images: sgd.Batch, size: int) -> list[sgd.Batch]:
    """All images under an op, in batches."""
    row = next(row for row in SPACE.rows if row.name == name)
    value = row.low + level * (row.high - row.low)
    changed = np.asarray(planting.plant([(row.op, value)], images.images))
    return [
        sgd.Batch(changed[start : start + size], images.labels[start : start + size])
        for start in range(0, len(changed), size)
    ]


def _images(
    rng: np.random.Generator, train: sgd.Batch, valid: sgd.Batch, names: tuple[str, ...], num_groups: int
) -> _Images:
    count = num_groups * GROUP
    same, *own = rng.permutation(len(train.labels))[: (1 + len(names)) * count].reshape(-1, count)
    valid = _part(valid, rng.permutation(len(valid.labels))[: NUM_VALID * VALID])
    return _Images(
        [_batches(name, LEVEL, _part(train, same), GROUP) for name in names],
        [_batches(name, LEVEL, _part(train, index), GROUP) for name, index in zip(names, own)],
        [_batches(name, PLANTED_LEVEL, valid, VALID) for name in names],
    )


def _part(batch, index):
    return sgd.Batch(batch.images[index], batch.labels[index])


def _states(
    config: dada.Config, state: dada.SearchState, rng: np.random.Generator, train: sgd.Batch, steps: tuple
) -> Iterator[dada.SearchState]:
    """The state after each number of steps of a search whose policy stays as it starts."""
    step, done = jax.jit(functools.partial(dada.step, config)), 0
    for stop in steps:
        for _ in range(done, stop):
            batch = _part(train, rng.choice(len(train.labels), GROUP, replace=False))
            state, _ = step(state, batch, batch)  # validation moves nothing at a rate of zero
        done = stop
        yield state


def _functions(config: dada.Config) -> tuple[Callable, Callable]:
    """Gradient of the mean loss of a batch, [P], and inner products of every image's with a vector [P]."""

    def losses(train, batch):
        return clean_losses(None, config, train.batch_stats, batch)

    @jax.jit
    def gradient(train, batch):
        return ravel_pytree(bilevel.loss_gradient(losses(train, batch), train.params)[0])[0]

    @jax.jit
    def alignment(train, batch, vector):
        direction = ravel_pytree(train.params)[1](vector)
        of_images = losses(train, batch)
        return bilevel.alignment(lambda params: of_images(params)[0], train.params, direction)

    return gradient, alignment


def _all_scores(
    functions: tuple[Callable, Callable], state: dada.SearchState, images: _Images
) -> dict[str, np.ndarray]:
    """[groups, planted ops, ops] by form, of a network."""
    (gradient, alignment), train = functions, state.train
    # [groups or batches, ops, P]
    same, own, valid = (
        np.stack([[gradient(train, batch) for batch in of_op] for of_op in part], 1) for part in images
    )
    of_groups = []
    for group, batches in enumerate(zip(*images.own)):
        v = valid[group % len(valid)]
        mixed = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        of_images = np.stack([alignment(train, mixed, vector) for vector in v])
        of_groups.append(
            {
                MIXED: of_images.reshape(len(v), len(batches), GROUP).mean(2),
                **scores(v, own[group], same[group]),
            }
        )
    return {form: np.stack([of_forms[form] for of_forms in of_groups]) for form in of_groups[0]}


def score_lines(
    seed: int,
    dataset: datasets.Dataset,
    names: tuple[str, ...] = OPS,
    steps: tuple[int, ...] = STEPS,
    num_groups: int = NUM_GROUPS,
) -> Iterator[ScoreLine]:
    """Forms of the score with a WRN-10-1 that has been trained for some steps, each op planted in turn.

    Args:
      seed: of the network, its training and the choice of images.
      dataset: its halves are searched on.
      names: rows of `SPACE`.
      steps: increasing.
      num_groups: 2 or more, of `GROUP` training images; the first half of the data needs as many images for
        each op and once more.

    Yields:
      A line per number of steps and form. It passes if the cosine has no fewer planted ops first.
    """
    train, valid = datasets.search_parts(dataset)
    rng = np.random.default_rng(seed)
    images = _images(rng, train, valid, names, num_groups)
    network, network_config = models.by_name("wrn_10_1", dataset.num_classes, train.images.shape[1])
    config = dada.Config(
        apply=network.apply,
        space=SPACE,
        num_epochs=1,
        steps_per_epoch=max(steps),
        learning_rate=_LEARNING_RATE,
        policy_learning_rate=0.0,
        crop_padding=0,
        flip=False,
        cutout_length=0,
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
    )
    network_key, search_key = jax.random.split(jax.random.key(seed))
    state = dada.init(search_key, config, *network.init(network_key, network_config))
    functions = _functions(config)
    for count, trained in zip(steps, _states(config, state, rng, train, steps)):
        results = {
            form: ranks_and_distances(of_groups)
            for form, of_groups in _all_scores(functions, trained, images).items()
        }
        first = {form: int(np.sum(ranks == 1)) for form, (ranks, _) in results.items()}
        for form, (ranks, distances) in results.items():
            yield ScoreLine(
                score=form,
                steps=count,
                first=f"{first[form]} of {len(names)}",
                mean_rank=float(ranks.mean()),
                distance=float(np.median(distances)),
                passed=first[form] <= first[COSINE],
            )
