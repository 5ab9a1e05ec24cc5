"""DeepAA: layers of actions, found by gradient matching (Zheng et al., ICLR 2022)."""

from .config import Config
from .search import SearchState, extract_policy, init, is_done, next_layer, step

__all__ = ["Config", "SearchState", "extract_policy", "init", "is_done", "next_layer", "step"]
