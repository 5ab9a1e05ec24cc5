"""The mathematics of the searches, of any pytree and any loss.

`relaxation`: discrete samples made differentiable. `estimators`: REINFORCE and RELAX. `bilevel`: gradients
through one training step, and the score that every search here stands on. Needs jax only; copy the folder
alone, or any of its files.
"""

from . import bilevel, estimators, relaxation

__all__ = ["bilevel", "estimators", "relaxation"]
