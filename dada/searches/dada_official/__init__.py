"""DADA as the released code does it, defects included."""

from .config import Config
from .search import SearchState, extract_policy, init, step

__all__ = ["Config", "SearchState", "extract_policy", "init", "step"]
