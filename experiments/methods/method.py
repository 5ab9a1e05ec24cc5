"""What the search command needs to know of a method in one of its presets."""

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax

from dada import policies
from dada.training import sgd
from experiments.data import datasets
from experiments.methods import search_loop
from experiments.runs import run_folder

Settings = dict[str, Any]  # resolved flags by name


class Task(NamedTuple):
    """What to search, apart from the seed."""

    method: "Method"
    config: Any  # of method.library
    model: tuple[Any, Any]  # from `tasks.network`
    dataset: datasets.Dataset
    data: search_loop.Data
    sizes: tuple[int, int]  # training and validation images that pass through the network in a step
    copies: int  # of each training image among them
    plan: Any = None  # of method.plan
    planted: tuple[tuple[str, float], ...] = ()  # ops and values on every validation image, in order
    max_steps: int | None = None
    measure_cost: bool = False
    judge: Any = None  # judge.Plan; None without --judge
    mesh: jax.sharding.Mesh | None = None  # the devices that share every batch, from `devices.mesh`
    pretrained: tuple[Any, Any] = ({}, {})  # as of `train_run.Task`
    decode_threads: int | None = None  # the same


class Steps(Protocol):
    """Programs that take steps."""

    seconds_compile: float | None  # so far; None where it cannot be told from running

    def run(
        self, state: Any, key: jax.Array, data: search_loop.Data, count: int
    ) -> Iterator[tuple[Any, Any, int]]:
        """Takes `count` steps. Yields (state, metrics with a leading axis of steps, steps in it)."""


class Method(NamedTuple):
    """A method, by what differs between methods. `settings` are the resolved flags of a run."""

    library: ModuleType  # of dada.searches: Config, SearchState, init, step, extract_policy
    divided: tuple[str, ...]  # flags of the batches that several devices share
    watched: tuple[str, ...]  # metrics that must be finite
    maps_seeds: bool  # whether all seeds run at once on an accelerator
    policy_position: str  # of policy_training.POSITIONS, as in the search
    stands_alone: bool  # whether one trains with its policies alone, without base augmentation
    # Images to search on and to validate with. (dataset, settings) -> both
    split: Callable[[datasets.Dataset, Settings], tuple[sgd.Batch, sgd.Batch]]
    # By flag of a batch the most images that it can ask for, and what to say of it. (both halves) -> limits
    largest_batches: Callable[[sgd.Batch, sgd.Batch], dict[str, tuple[int, str]]]
    # The library's Config. (settings, its fields of `config_fields`, the mesh of the run) -> Config
    config: Callable[[Settings, dict[str, Any], Any], Any]
    # What the functions below need besides it. (settings, dataset) -> Task.plan
    plan: Callable[[Settings, datasets.Dataset], Any]
    # Levels at which an op is planted if no value is given, the best one first. (config, row) -> levels
    planted_levels: Callable[[Any, int], tuple[float, ...]]
    total_steps: Callable[[Any], int]  # of a config
    # The step at which a run is saved next. (config, steps done) -> step
    next_stop: Callable[[Any, int], int]
    # A state of the shapes after some steps, and the key of the batches. (task, seed, folder, steps done)
    start: Callable[[Task, int, run_folder.RunFolder, int], tuple[Any, jax.Array]]
    # The state to go on with after a stop; None ends the search. (task, state, steps done) -> state
    proceed: Callable[[Task, Any, int], Any]
    # Programs for all seeds of a task. (task, whether seeds are mapped) -> Steps
    steps: Callable[[Task, bool], Steps]
    # The same of plain training steps of the network, the yardstick of cost.
    plain_steps: Callable[[Task, bool], Steps]
    # What summary.json says of this method only. (task, folder, metrics, state, policy) -> summary
    report: Callable[[Task, run_folder.RunFolder, list[dict], Any, policies.Policy], dict[str, Any]]
    # Of `search_loop`: validation images of a step, (config, key, step, count, size) -> int32 [size]
    valid_indices: Callable[[Any, jax.Array, jax.Array, int, int], jax.Array] | None = None
    # Of `search_loop`: learning rate of the network. (config, step) -> []
    learning_rate: Callable[[Any, jax.Array], jax.Array] | None = None
    # What flags of this method only name, by content (`contents`). (task) -> contents
    contents: Callable[[Task], dict[str, str | None]] = lambda task: {}
    streams: bool = True  # whether training images can stay on the host; else those of the search are decoded


def config_fields(
    config_class: type, settings: Settings, dataset: datasets.Dataset, **more
) -> dict[str, Any]:
    """Fields of a Config that flags of its names, the data set and `more` say; other names are left out."""
    said = {
        **settings,
        "clip_norm": settings.get("clip_norm") or None,
        "num_epochs": settings.get("epochs"),
        "mean": tuple(dataset.mean.tolist()),
        "std": tuple(dataset.std.tolist()),
        **more,
    }
    return {field.name: said[field.name] for field in dataclasses.fields(config_class) if field.name in said}


def defaults_of(config_class: type) -> dict[str, Any]:
    """Defaults of a Config by field."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}
