"""The flags of DADA, and its two methods: as it is here, and as the released code does it."""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from dada import policies
from dada.searches import dada, dada_official
from dada.searches.dada import config as dada_config
from dada.searches.dada import space as policy_space
from dada.searches.dada_official import config as official_config
from dada.searches.dada_official import gradient as official_gradient
from experiments.data import datasets
from experiments.methods import search_loop
from experiments.methods.method import Method, Settings, Task, defaults_of
from experiments.runs import command_line, run_folder


def define(values: flags.FlagValues) -> None:
    """Defines the flags of this method only."""
    add = command_line.definers(values)
    add.enum("policy_space", "pairs", tuple(policy_space.SIZES), "What the policy is made of.")
    add.enum("estimator", "relax", dada_config.ESTIMATORS, "Estimator of the policy gradient.")
    about = "Of a sub-policy: the cosine of two gradients, or the exact gradient of the paper."
    add.enum("score", "cosine", ("cosine", "exact"), about)
    about = "Sub-policies of a step; they share the images: a step has batch_size / num_draws of them."
    add.integer("num_draws", 8, about, lower_bound=2)
    about = "In which the network computes; scores and updates are float32, trainings of --judge too."
    add.enum("dtype", "float32", ("float32", "bfloat16"), about)
    about = "Directional derivatives by JVP or by differences."
    add.enum("hypergradient", None, ("exact", "finite_difference"), about)
    add.integer("top_k", 25, "Sub-policies that the policy keeps.", lower_bound=1)
    add.float("temperature", None, "Of relaxed samples, at the start.", lower_bound=1e-3)
    add.float("final_temperature", None, "Of relaxed samples, at the end.", lower_bound=1e-3)


def unread(settings: Settings) -> dict[str, str]:
    """Flags that have no effect, and the flag that makes it so."""
    if settings["preset"] == "official":
        names = ("policy_space", "score", "num_draws", "dtype")
        return dict.fromkeys(names, "--preset=official")
    names = {}
    if settings["estimator"] == "reinforce":
        names |= dict.fromkeys(("temperature", "final_temperature"), "--estimator=reinforce")
    if settings["policy_space"] == "slots":
        names["top_k"] = "--policy_space=slots"
    if settings["score"] == "exact":
        return names | {"num_draws": "--score=exact"}
    exact = ("estimator", "hypergradient", "temperature", "final_temperature")
    return names | dict.fromkeys(exact, "--score=cosine; --score=exact reads it")


def defaults(settings: Settings) -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    is_official = settings["preset"] == "official"
    is_mixture = settings["estimator"] in dada_config.MIXTURES and not is_official
    fields = defaults_of(official_config.Config if is_official else dada_config.Config)
    if settings["score"] == "exact":
        fields |= defaults_of(dada_config.CommonConfig)
    temperature = 1.0 if is_mixture else fields["temperature"][0]
    names = ("learning_rate", "hypergradient", "policy_learning_rate")
    return {
        "search_space": "dada" if is_official else "directed",
        "valid_batch_size": settings["batch_size"],
        "temperature": temperature,
        "final_temperature": 0.1 if is_mixture else settings["temperature"] or temperature,
        **{name: fields[name] for name in names if name in fields},
    }


def _config(library: ModuleType, settings: Settings, fields: dict[str, Any], mesh: Any) -> Any:
    del mesh
    # Refuses a space of fewer ops than a sub-policy has.
    policy_space.init(settings.get("policy_space", "pairs"), len(fields["space"].rows))
    if library is dada_official and settings["estimator"] != "relax":
        raise ValueError(f"--estimator={settings['estimator']}: expected relax with --preset=official")
    if settings.get("hypergradient") == "finite_difference" and settings.get("dtype") == "bfloat16":
        expected = "expected exact: such differences are smaller than its rounding"
        raise ValueError(f"--dtype=bfloat16: got --hypergradient=finite_difference, {expected}")
    # A temperature that no estimator reads has its default.
    if "temperature" in settings:
        fields = {**fields, "temperature": (settings["temperature"], settings["final_temperature"])}
    return library.Config(**fields)


def _planted_levels(config: Any, row: int) -> tuple[float, ...]:
    del config, row
    return (0.8, 1.0)


def _report(
    kind_of: Any,
    as_logits: Any,
    task: Task,
    folder: run_folder.RunFolder,
    lines: list[dict[str, Any]],
    state: Any,
    policy: policies.Policy,
) -> dict[str, Any]:
    """The start, and the learned distribution."""
    del folder, lines, policy
    names = [row.name for row in task.config.space.rows]
    learned = as_logits(state.policy)
    start = policy_space.op_mass(policy_space.init(kind_of(task.config), len(names)), len(names))
    return {
        "op_mass_initial": dict(zip(names, start.tolist())),
        "distribution": {
            "op": jax.nn.softmax(learned.op),
            "application": jax.nn.sigmoid(learned.application),
            "level": jax.nn.sigmoid(learned.level),
        },
    }


CORRECTED = Method(
    library=dada,
    divided=("batch_size", "valid_batch_size"),
    watched=("train_loss", "valid_loss"),
    maps_seeds=True,
    policy_position="after_crop",
    stands_alone=False,
    split=lambda dataset, settings: datasets.search_parts(dataset),
    largest_batches=search_loop.largest_batches,
    config=functools.partial(_config, dada),
    plan=lambda settings, dataset: None,
    planted_levels=_planted_levels,
    total_steps=search_loop.total_steps,
    next_stop=search_loop.next_stop,
    start=search_loop.start,
    proceed=search_loop.proceed,
    steps=search_loop.steps,
    plain_steps=search_loop.plain_steps,
    report=functools.partial(_report, lambda config: config.policy_space, lambda parameters: parameters),
    valid_indices=lambda config, *arguments: search_loop.random_indices(*arguments),
    learning_rate=dada_config.learning_rate,
)
OFFICIAL = CORRECTED._replace(
    library=dada_official,
    config=functools.partial(_config, dada_official),
    report=functools.partial(_report, lambda config: "pairs", official_gradient.as_logits),
    # The first batch in every step.
    valid_indices=lambda config, key, step, count, size: jnp.arange(size),
    learning_rate=official_config.learning_rate,
)
METHODS = {"corrected": CORRECTED, "official": OFFICIAL}
