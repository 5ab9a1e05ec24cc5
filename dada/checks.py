"""Checks that all methods share: settings of a Config, and the batches of a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax.numpy as jnp


def check_choices(config: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError unless every named field of a config has one of its words."""
    for field, allowed in choices.items():
        if getattr(config, field) not in allowed:
            raise ValueError(f"{field}: got {getattr(config, field)!r}, expected one of {', '.join(allowed)}")


def check_counts(config: Any, *fields: str) -> None:
    """Raises ValueError unless every named field of a config is 1 or more."""
    for field in fields:
        if getattr(config, field) < 1:
            raise ValueError(f"{field}: got {getattr(config, field)}, expected 1 or more")


def check_batches(*batches: Any) -> None:
    """Raises AssertionError unless every batch is one as of `training.sgd`."""
    for batch in batches:
        parts, ranks, types = (batch.images, batch.labels), (4, 1), (jnp.uint8, jnp.int32)
        if isinstance(batch.images, tuple):
            parts, ranks = (*batch.images, batch.labels), (4, 3, 2, 2)
            types = (jnp.uint8, jnp.float32, bool, jnp.int32)
        chex.assert_rank(parts, ranks)
        chex.assert_equal_shape_prefix(parts, 1)
        chex.assert_type(parts, types)


def check_no_random_ops(names: Sequence[str]) -> None:
    """Raises ValueError if a space has ops that are drawn at random, which have no level to learn."""
    if names:
        raise ValueError(f"space: got the random ops {', '.join(names)}, which only DeepAA searches")
