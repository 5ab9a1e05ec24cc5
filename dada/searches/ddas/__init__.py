"""DDAS: an explicit expectation over sampled policies (Liu et al., 2021)."""

from .config import Candidates, Config, as_released, candidates
from .search import SearchState, extract_policy, init, step

__all__ = [
    "Candidates",
    "Config",
    "SearchState",
    "as_released",
    "candidates",
    "extract_policy",
    "init",
    "step",
]
