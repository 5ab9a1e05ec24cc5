"""DADA: one-step bi-level optimisation of sub-policies, see `search` (Li et al., ECCV 2020)."""

from .config import Config
from .search import SearchState, extract_policy, init, step

__all__ = ["Config", "SearchState", "extract_policy", "init", "step"]
