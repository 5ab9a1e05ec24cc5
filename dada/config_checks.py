"""Checks that the settings of all methods share: one of some words, and whole numbers from 1 up.

Copy alone: needs nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any


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
