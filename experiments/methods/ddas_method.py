"""The flags of DDAS, and its method."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dada import ops, policies
from dada.searches import ddas
from dada.searches.ddas import config as ddas_config
from experiments.methods import search_loop
from experiments.methods.dada_method import CORRECTED as DADA
from experiments.methods.method import Settings, Task, defaults_of
from experiments.runs import command_line, run_folder


def define(values: flags.FlagValues) -> None:
    """Defines the flags of this method only."""
    add = command_line.definers(values)
    add.integer("num_policies", 3, "Policies sampled in a step, or for an image of it.", 1, 10_000)
    add.integer("num_ops", 2, "Ops in a sampled policy.", 1, 1000)
    add.list(
        "magnitudes",
        [],
        "Magnitudes of every op: 0..30 in a ddas space, levels 0..1 in others. Default: the space's own.",
    )
    add.bool("share_randomness", None, "One crop, flip and cutout for all copies of an image.")
    add.float("p_tp", 0.35, "Probability of augmenting an image at all, at the start.", 0.0, 1.0)
    add.bool("learn_p_tp", True, "Learn --p_tp; without it p_tp stays.")
    add.float("p_tp_learning_rate", None, "Adam, of p_tp.", lower_bound=0.0)
    add.integer("smoothing", 1, "Epochs over which the policy's p_tp is averaged.", lower_bound=1)
    add.float("momentum", 0.0, "Of the network's SGD.", 0.0, 1.0)
    add.bool("nesterov", False, "Nesterov's momentum.")
    add.enum("draws", None, ("image", "batch"), "What shares one draw.")


def unread(settings: Settings) -> dict[str, str]:
    """Flags that have no effect, and the flag that makes it so."""
    names = {} if settings["learn_p_tp"] else {"p_tp_learning_rate": "--nolearn_p_tp"}
    if settings["preset"] == "official":  # all at 28, whatever they say
        names["magnitudes"] = "--preset=official"
    return names


def defaults(settings: Settings) -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    fields = defaults_of(ddas.Config)
    fields.update(ddas_config.OFFICIAL_SETTINGS if settings["preset"] == "official" else {})
    names = ("draws", "share_randomness", "learning_rate", "weight_decay", "policy_learning_rate")
    return {
        "search_space": "ddas",
        "batch_size": 32,
        "valid_batch_size": 256,
        "clip_norm": 0.0,
        **{name: fields[name] for name in (*names, "p_tp_learning_rate")},
    }


def _candidates(settings: Settings, space: ops.SearchSpace) -> ddas.Candidates:
    if settings["preset"] == "official":
        return ddas.as_released(space)
    texts = settings["magnitudes"]
    try:
        magnitudes = tuple(float(text) for text in texts)
    except ValueError:
        raise ValueError(f"--magnitudes: got {','.join(texts)}, expected numbers") from None
    return ddas.candidates(space, magnitudes or None)


def _config(settings: Settings, fields: dict[str, Any], mesh: Any) -> ddas.Config:
    del mesh
    if settings["nesterov"] and not settings["momentum"]:
        raise ValueError("--nesterov has no effect with --momentum=0")
    return ddas.Config(
        **fields,
        candidates=_candidates(settings, fields["space"]),
        initial_p_tp=settings["p_tp"],
        momentum_decay=settings["momentum"],
    )


def _planted_levels(config: ddas.Config, row: int) -> tuple[float, ...]:
    """Levels of an op's candidates, from the middle one up, then the ones below."""
    levels = [level for other, level in zip(*config.candidates) if other == row]
    middle = len(levels) // 2
    return (*levels[middle:], *levels[:middle])


def valid_indices(config: ddas.Config, key: jax.Array, step: jax.Array, count: int, size: int) -> jax.Array:
    """Validation images of a step, int32 [size].

    In the official preset the batches of every epoch are the same ones in the same order.
    """
    if config.preset == "official":
        batch = step % config.steps_per_epoch % -(-count // size)
        return (batch * size + jnp.arange(size)) % count
    return search_loop.random_indices(key, step, count, size)


def _report(
    task: Task,
    folder: run_folder.RunFolder,
    lines: list[dict[str, Any]],
    state: ddas.SearchState,
    policy: policies.Policy,
) -> dict[str, Any]:
    """The start, and p_tp of every epoch as in the policy."""
    del folder, lines, state
    config = task.config
    rows = np.array(config.candidates.row)
    share = np.bincount(rows, minlength=len(config.space.rows)) / len(rows)
    start = config.initial_p_tp * config.num_ops * share
    return {
        "op_mass_initial": dict(zip([row.name for row in config.space.rows], start.tolist())),
        "steps_per_epoch": config.steps_per_epoch,
        "p_tp_initial": config.initial_p_tp,
        "p_tp": policy.content.p_tp,
    }


CORRECTED = DADA._replace(
    library=ddas,
    policy_position="first",
    config=_config,
    planted_levels=_planted_levels,
    report=_report,
    valid_indices=valid_indices,
    learning_rate=ddas_config.learning_rate,
)
METHODS = {"corrected": CORRECTED, "official": CORRECTED}  # the library's Config knows the preset
