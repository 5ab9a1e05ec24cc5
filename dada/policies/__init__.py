"""Augmentation policies as one artefact of three kinds, with the published ones (`published/*.json`).

`policy`: the artefact, its checks and its JSON. `baselines`: policies without a search. `schedule`: frozen
forms of a DDAS policy. `merging`: one policy of several. `summary`: op mass and tables. Copy with `ops`
beside it.
"""

from . import baselines, schedule
from .merging import merge
from .policy import (
    METADATA,
    Layers,
    Policy,
    Schedule,
    SubPolicies,
    from_sequences,
    identity,
    load,
    random_policy,
    save,
    space,
    to_json,
    validate,
)
from .summary import format_table, layer_shares, op_levels, op_mass

__all__ = [
    "METADATA",
    "Layers",
    "Policy",
    "Schedule",
    "SubPolicies",
    "baselines",
    "format_table",
    "from_sequences",
    "identity",
    "layer_shares",
    "load",
    "merge",
    "op_levels",
    "op_mass",
    "random_policy",
    "save",
    "schedule",
    "space",
    "to_json",
    "validate",
]
