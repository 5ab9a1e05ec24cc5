"""The frozen forms of a DDAS policy.

A training of E epochs replays the T epochs of a schedule in order, E / T epochs each
(`policy_training`). T epochs, K candidates.

Reference: Liu et al. 2021, section 3.5.4 and table 6.
"""

import dataclasses

import numpy as np

from .policy import Policy


def freeze(policy: Policy, *, p_tp: bool = False, p_o: bool = False) -> Policy:
    """Returns a schedule with p_tp, p_o or both held at their last value (table 6).

    Args:
      policy: of kind "schedule".
      p_tp: hold p_tp.
      p_o: hold p_o.
    Raises:
      ValueError: another kind of policy.
    """
    if policy.kind != "schedule":
        raise ValueError(f"policy: got kind {policy.kind!r}, expected 'schedule' to freeze")
    content = policy.content
    if p_tp:
        content = content._replace(p_tp=np.full_like(content.p_tp, content.p_tp[-1]))
    if p_o:
        content = content._replace(p_o=np.tile(content.p_o[-1], (len(content.p_o), 1)))
    held = " and ".join(name for name, is_held in (("p_tp", p_tp), ("p_o", p_o)) if is_held)
    rule = f"{policy.selection_rule or 'as given'}; {held or 'nothing'} held at the last value"
    return dataclasses.replace(policy, content=content, selection_rule=rule)
