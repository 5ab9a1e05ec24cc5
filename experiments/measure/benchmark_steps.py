"""The cost of one step of DADA, DDAS and DeepAA in plain training steps of the same network.

A plain step is `search_loop.plain_step`: one forward and backward pass of the search's own training batch and
the update of the weights. All kinds of steps of a method take turns with it, in one run.

    dada     as it is by default, the score the cosine of gradients: a batch is every draw on the same images;
             the exact score, of which every image has its own draw; the same by finite differences
    ddas     policies of every image, or of the batch; its training batch is a quarter, its validation batch
             twice that of DADA, as in the papers
    deepaa   an update of layer 1 with the settings of deepaa_quick.flags, in plain steps of 64 images

DDAS is held against its operation count (`ddas_operation_count`).
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dada import models, ops
from dada.searches import dada, ddas, deepaa
from dada.searches.deepaa.config import CIFAR_OPS
from experiments.data import datasets
from experiments.measure import benchmark_timing
from experiments.methods import dada_method, ddas_method, deepaa_run, search_loop
from experiments.methods.method import Method
from experiments.runs import compiled_loop

_ROUNDS = 3
_DEEPAA_POINTS, _DEEPAA_VALID, _DEEPAA_BATCH = 4, 32, 64
# On a CPU an update of DeepAA takes minutes with larger ones.
_DEEPAA_CPU_NETWORKS = ("wrn_10_1",)


def ddas_operation_count(batch_size: int, valid_size: int, num_policies: int, draws: str) -> float:
    """Operations of a DDAS step over those of a plain step, in passes of one image.

    A forward pass is 1, a backward pass and the tangents of a forward pass 2 each. With m = L-hat + 1 copies
    (`num_policies` is L-hat) of b images and v validation images, a plain step is 3 b and

      batch   3 m b + 3 v   a gradient for each copy, and the validation gradient
      image   5 m b + 3 v   one gradient of the mixture, tangents of all copies, and the validation gradient
    """
    copies = (num_policies + 1) * batch_size
    return ({"batch": 3, "image": 5}[draws] * copies + 3 * valid_size) / (3 * batch_size)


def _dada_configs(network: ModuleType) -> dict[str, dada.Config]:
    config = functools.partial(
        dada.Config,
        apply=network.apply,
        space=ops.search_space("directed"),
        steps_per_epoch=benchmark_timing.STEPS_AT_ONCE,
    )
    return {
        "plain_steps": config(),
        "exact": config(score="exact"),
        "finite_difference": config(score="exact", hypergradient="finite_difference"),
    }


def _copies(config: Any) -> int:
    """How often an image is in the training batch: once for every draw that the score cosine compares."""
    return config.num_draws if getattr(config, "score", None) == "cosine" else 1


def _ddas_configs(network: ModuleType) -> dict[str, ddas.Config]:
    space = ops.search_space("ddas")
    config = functools.partial(
        ddas.Config,
        apply=network.apply,
        space=space,
        candidates=ddas.candidates(space, None),
        steps_per_epoch=benchmark_timing.STEPS_AT_ONCE,
    )
    return {"plain_steps": config(), "batch": config(draws="batch")}


def _start(name: str, dataset: datasets.Dataset, seed: int) -> tuple[ModuleType, Any, Any]:
    """Module of a network, and its params and batch_stats."""
    network, network_config = models.by_name(name, dataset.num_classes, max(dataset.train_images.shape[1:3]))
    return network, *jax.jit(network.init, static_argnums=1)(jax.random.key(seed), network_config)


def _measure(
    method: Method,
    configs: dict[str, Any],
    sizes: tuple[int, int],
    network: tuple[Any, Any],
    data: search_loop.Data,
    seed: int,
    label: str,
) -> dict[str, Any]:
    """Cost of the steps of a method with each of its settings, in plain steps of the first one.

    `sizes` are training and validation images that pass through the network in a step.
    """
    first = next(iter(configs.values()))
    key, state_key = jax.random.split(jax.random.key(seed))
    # A state of its own for each setting: what a search carries depends on the score.
    states = {name: method.library.init(state_key, config, *network) for name, config in configs.items()}
    states["plain"] = states[next(iter(configs))]
    steps = {
        name: functools.partial(
            search_loop.search_step, method, config, (sizes[0] // _copies(config), sizes[1])
        )
        for name, config in configs.items()
    }
    peak = benchmark_timing.peak_memory()
    programs, seconds_compile = {}, {}
    plain = functools.partial(search_loop.plain_step, method, first, sizes)
    for name, step in {**steps, "plain": plain}.items():
        state = states[name]
        programs[name], seconds_compile[name] = benchmark_timing.compiled_steps(step, state, key, data)
        if name == "plain_steps":
            jax.block_until_ready(programs[name](state, key, data))
            memory = benchmark_timing.memory(programs[name], peak)
            compiled = benchmark_timing.parts_and_whole(
                step, programs[name], seconds_compile[name], state, key, data
            )
            # Nothing that is in memory: the compiler's work is found in the folder of compiled programs.
            jax.clear_caches()
            _, seconds_cached = benchmark_timing.compiled_steps(step, state, key, data)
    calls = {name: functools.partial(program, states[name], key, data) for name, program in programs.items()}
    seconds = benchmark_timing.alternating(calls, rounds=_ROUNDS, label=label, least_seconds=0.0)
    return {
        "batch_size": sizes[0],
        "valid_batch_size": sizes[1],
        **{name: seconds[name] / seconds["plain"] for name in steps},
        "seconds_plain_step": seconds["plain"] / benchmark_timing.steps_at_once(),
        "seconds_compile_cold": seconds_compile["plain_steps"],
        "seconds_compile_cached": seconds_cached,
        **memory,
        **compiled,
    }


def _deepaa(name: str, dataset: datasets.Dataset, data: search_loop.Data, seed: int) -> dict[str, Any]:
    network, params, batch_stats = _start(name, dataset, seed)
    config = deepaa.Config(
        apply=network.apply,
        space=ops.search_space("deepaa", CIFAR_OPS),
        num_layers=1,
        chunk_loop="scan" if compiled_loop.scans() else "python",
    )
    step = jax.jit(deepaa.step, static_argnums=0) if compiled_loop.scans() else deepaa.step
    state = deepaa.init(jax.random.key(seed), config, params, batch_stats)
    tables = tuple(deepaa_run.class_table(np.asarray(half.labels), dataset.num_classes) for half in data)
    sizes = {"num_points": _DEEPAA_POINTS, "num_valid": _DEEPAA_VALID}
    points = deepaa_run.batches(jax.random.key(seed), data, tables, jnp.zeros((), jnp.int32), **sizes)
    plain_config = _dada_configs(network)["plain_steps"]
    plain_state = dada.init(jax.random.key(seed), plain_config, params, batch_stats)
    sizes = (_DEEPAA_BATCH, _DEEPAA_BATCH)
    plain_step = functools.partial(search_loop.plain_step, dada_method.CORRECTED, plain_config, sizes)
    arguments = (plain_state, jax.random.key(seed), data)
    plain, _ = benchmark_timing.compiled_steps(plain_step, *arguments)
    calls = {"search": lambda: step(config, state, *points), "plain": lambda: plain(*arguments)}
    label = f"steps deepaa {name}"
    seconds = benchmark_timing.alternating(calls, rounds=_ROUNDS, label=label, least_seconds=0.0)
    plain_seconds = seconds["plain"] / benchmark_timing.steps_at_once()
    return {
        "batch_size": _DEEPAA_BATCH,
        "num_points": _DEEPAA_POINTS,
        "valid_batch_size": _DEEPAA_VALID,
        "plain_steps": seconds["search"] / plain_seconds,
        "seconds_plain_step": plain_seconds,
    }


def _ddas(costs: dict[str, Any]) -> dict[str, Any]:
    """Adds operation counts to what was measured; `operation_count` is the smaller one, of draws "batch"."""
    sizes = costs["batch_size"], costs["valid_batch_size"]
    counts = {
        draws: ddas_operation_count(*sizes, ddas.Config.num_policies, draws) for draws in ("batch", "image")
    }
    return {
        **costs,
        "operation_count": counts["batch"],
        "operation_count_image": counts["image"],
        "ratio_to_operation_count": costs["plain_steps"] / counts["batch"],
        "batch_ratio_to_operation_count": costs["batch"] / counts["batch"],
    }


def run(
    batch_sizes: dict[str, int], dataset: datasets.Dataset, seed: int, *, quick: bool = False
) -> dict[str, Any]:
    """Measures the steps of all methods, with the training half and the validation half of a data set as in a
    search.

    `batch_sizes` are those of DADA, training and validation, by network; `quick` is DADA alone, as it is by
    default. Returns, by method and network, costs in plain steps, with the sizes that they were measured at.
    """
    data = search_loop.to_device(*datasets.search_parts(dataset))
    results = {"dtype": "float32", "dada": {}, "ddas": {}, "deepaa": {}}
    for name, batch_size in batch_sizes.items():
        network, *weights = _start(name, dataset, seed)
        configs, sizes = _dada_configs(network), (batch_size, batch_size)
        if quick:
            configs = {"plain_steps": configs["plain_steps"]}
        results["dada"][name] = _measure(
            dada_method.CORRECTED, configs, sizes, weights, data, seed, f"steps dada {name}"
        )
        if quick:
            continue
        configs, sizes = _ddas_configs(network), (max(2, batch_size // 4), 2 * batch_size)
        results["ddas"][name] = _ddas(
            _measure(ddas_method.CORRECTED, configs, sizes, weights, data, seed, f"steps ddas {name}")
        )
        if compiled_loop.scans() or name in _DEEPAA_CPU_NETWORKS:
            results["deepaa"][name] = _deepaa(name, dataset, data, seed)
    return results
