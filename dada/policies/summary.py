"""What a policy does, in numbers and as plain text: expected applications per op; a printable table."""

import numpy as np

from .. import ops
from .policy import Policy, space


def _mass(policy):
    """Expected applications of every row: float64 [1 or K layers or E epochs, R]."""
    row, per_entry = _applications(policy)
    return per_entry @ np.eye(len(space(policy).rows))[row]


def _applications(policy):
    """(row of every entry [N], expected applications [1 or K layers or E epochs, N])."""
    content = policy.content
    if policy.kind == "sub_policies":
        share = _shares(content)[:, None] * content.probability
        row = np.maximum(content.row, 0).ravel()
        per_entry = np.where(content.row >= 0, share, 0).reshape(1, -1)
    elif policy.kind == "layers":
        row, per_entry = content.row, content.probability
    else:
        row, per_entry = content.row, content.p_tp[:, None] * content.num_ops * content.p_o
    return row, per_entry


def _shares(content):
    count = len(content.row)
    weight = np.ones(count) if content.weight is None else content.weight
    return weight / weight.sum()


def op_mass(policy: Policy) -> dict[str, float]:
    """Returns the expected number of applications per image of every op of the search space.

    Layers are added up; a schedule is averaged over its epochs. An op at a level where it does
    nothing counts as applied, and so does an action Identity.
    """
    mass = _mass(policy)
    total = mass.mean(axis=0) if policy.kind == "schedule" else mass.sum(axis=0)
    return dict(zip([row.name for row in space(policy).rows], total.tolist()))


def op_levels(policy: Policy) -> dict[str, float | None]:
    """Returns the mean level of every op, by expected applications; None where it is not applied."""
    row, per_entry = _applications(policy)
    applied = per_entry.sum(0)[:, None] * np.eye(len(space(policy).rows))[row]  # [N, R]
    mass, level = applied.sum(0), policy.content.level.ravel() @ applied
    names = [row.name for row in space(policy).rows]
    return {name: float(level[r] / mass[r]) if mass[r] else None for r, name in enumerate(names)}


def layer_shares(policy: Policy) -> np.ndarray:
    """Probability of every op in every layer of a policy of kind "layers", over all levels, [K, R]."""
    return _mass(policy)


def _describe(row, probability, level, value):
    text = f"{row.name} {probability:.2f}"
    if not row.unit:
        return text
    if not row.random_sign:
        return f"{text} @ {level:.2f} = {value:.3g}"
    around = f"{row.identity:g}" if row.identity else ""
    return f"{text} @ {level:.2f} = {around}+-{abs(value - row.identity):.3g}"


def _sub_policy_lines(policy):
    rows, content = space(policy).rows, policy.content
    plus, any_row = np.ones_like(content.level), np.maximum(content.row, 0)
    value = np.asarray(ops.level_to_value(space(policy), any_row, content.level, plus))
    lines = [f"{'':4}  weight  op probability @ level = value"]
    for n, share in enumerate(_shares(content)):
        columns = [
            _describe(rows[row], content.probability[n, k], content.level[n, k], value[n, k])
            for k, row in enumerate(content.row[n])
            if row >= 0
        ]
        lines.append(f"{n:4d}  {share:.4f}  " + "".join(f"{text:<34}  " for text in columns))
    return lines


def _mass_lines(policy):
    rows, mass = space(policy).rows, _mass(policy)
    if policy.kind == "layers":
        heads, shown = [f"layer {k + 1}" for k in range(len(mass))], range(len(mass))
    else:
        shown = sorted({0, len(mass) // 2, len(mass) - 1})
        heads = [f"epoch {epoch}" for epoch in shown]
    width = max(16, *(len(row.name) for row in rows))
    lines = [f"{'op':<{width}}" + "".join(f"{head:>12}" for head in heads)]
    for index, row in enumerate(rows):
        lines.append(f"{row.name:<{width}}" + "".join(f"{mass[c, index]:12.4f}" for c in shown))
    if policy.kind == "schedule":
        p_tp = policy.content.p_tp
        lines.append(f"{'p_tp':<{width}}" + "".join(f"{p_tp[epoch]:12.4f}" for epoch in shown))
    return lines


def format_table(policy: Policy) -> str:
    """Returns a plain-text table.

    Sub-policies: a line each, with its share of the images. Layers and schedule: expected
    applications per image of every op, by layer or in the first, middle and last epoch.
    """
    title = f"{policy.kind} in search space {policy.search_space}"
    for word, names in (("with", policy.extra_ops), ("without", policy.excluded_ops)):
        title += f" {word} {', '.join(names)}" if names else ""
    lines = _sub_policy_lines if policy.kind == "sub_policies" else _mass_lines
    return "\n".join(line.rstrip() for line in (title, *lines(policy))) + "\n"
