"""Differentiable augmentation-policy search in plain JAX: DADA, DDAS and DeepAA on one core.

Rooms, from the bottom up; a room imports only from those before it, and a folder is what one copies:
    ops        one image, one op; names, ranges and search spaces       copy alone
    gradients  relaxations, estimators, gradients through a step        copy alone
    models     networks as `init` and `apply`                           copy alone
    policies   the artefact that a search finds and a training uses     copy with ops
    augment    from a policy and a key to augmented batches             copy with ops and policies
    detection  what a detector needs besides its network                copy alone
    training   training with a policy                                   copy with all of these and checks.py
    searches   one folder for each method                               copy the whole package
"""

__version__ = "0.1.0"
