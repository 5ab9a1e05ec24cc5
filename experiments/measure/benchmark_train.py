"""Training images per second with and without a policy, beside PyTorch, and in the device's limits.

The limits are those of the arithmetic, three forward passes of multiplications and additions at the peak that
the vendor gives for dense matrices, and those of the memory, 14 passes over the outputs of all convolutions
(convolution, batch statistics and their use, and about twice that backwards), where small networks live.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada import models, policies
from dada.training import policy_training, sgd
from experiments.measure import benchmark_timing
from experiments.runs import compiled_loop

POLICY = "dada_cifar10"
_ROUNDS = 5
_NUM_CLASSES = 10
_PASSES = 14
_BYTES = {"float32": 4, "bfloat16": 2}


class Work(NamedTuple):
    """What a training step takes for one image of 32 x 32, counted layer by layer."""

    operations: float  # of three forward passes
    outputs: float  # numbers that come out of all convolutions, forwards


class Peaks(NamedTuple):
    """Of one device, from the vendor's data sheet: operations per second, dense, and bytes per second."""

    float32: float  # TF32, in which JAX multiplies float32 by default
    bfloat16: float
    bandwidth: float


WORK = {"wrn_40_2": Work(1.97e9, 0.762e6), "wrn_28_10": Work(31.46e9, 2.597e6)}
# By a part of `device_kind`.
PEAKS = {
    "A100-SXM4-40GB": Peaks(156e12, 312e12, 1.555e12),
    "A100-SXM4-80GB": Peaks(156e12, 312e12, 2.04e12),
    "H100 80GB HBM3": Peaks(495e12, 989e12, 3.35e12),
    "H200": Peaks(495e12, 989e12, 4.8e12),
}


def training_steps(
    model: str, dtype: str, policy_name: str, images: np.ndarray, batch_size: int, seed: int
) -> Callable[[], Any]:
    """`benchmark_timing.steps_at_once` training steps on one batch, compiled; a function without arguments.

    The policy is a shipped one, or "none". The first of `images`, uint8 [N, H, W, 3], are the batch, repeated
    if they are too few; `seed` is that of weights, labels and augmentation.
    """
    network, model_config = models.by_name(model, _NUM_CLASSES, images.shape[1])
    config = policy_training.Config(
        apply=network.apply,
        policy=policies.identity() if policy_name == "none" else policies.load(policy_name),
        steps_per_epoch=benchmark_timing.STEPS_AT_ONCE,
        dtype=dtype,
    )
    model_key, label_key, step_key = jax.random.split(jax.random.key(seed), 3)
    params, batch_stats = jax.jit(network.init, static_argnums=1)(model_key, model_config)
    batch = (
        jnp.asarray(np.resize(images, (batch_size, *images.shape[1:]))),
        jax.random.randint(label_key, (batch_size,), 0, _NUM_CLASSES),
    )

    def step(state, images, labels):
        return policy_training.step(step_key, config, state, images, labels)

    state = sgd.init(params, batch_stats)
    program, _ = benchmark_timing.compiled_steps(step, state, *batch)
    return lambda: program(state, *batch)


def pytorch_version() -> str | None:
    """The version of PyTorch, which nothing here needs; None where it is not installed."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def pytorch_steps(
    model: str, dtype: str, image_size: int, batch_size: int, seed: int
) -> Callable[[], None] | str:
    """As many training steps without policy in PyTorch; a text where they cannot be run."""
    if pytorch_version() is None:
        return "not run: PyTorch is not installed"
    from experiments.measure import benchmark_torch

    return benchmark_torch.training_steps(model, dtype, _NUM_CLASSES, image_size, batch_size, seed)


def run(batch_sizes: dict[str, int], images: np.ndarray, seed: int) -> dict[str, Any]:
    """Images per second by network and type, what the policy leaves of them, and how many times PyTorch's.

    As `training_steps`. `ratio_to_pytorch`, without policy, is a text where PyTorch is not run.
    bfloat16 is measured on accelerators only: a CPU has no arithmetic for it.
    """
    results = {}
    for name, batch_size in batch_sizes.items():
        results[name] = {}
        for dtype in ("float32", "bfloat16") if compiled_loop.scans() else ("float32",):
            contenders = {
                kind: training_steps(name, dtype, kind, images, batch_size, seed) for kind in ("none", POLICY)
            }
            pytorch = pytorch_steps(name, dtype, images.shape[1], batch_size, seed)
            if callable(pytorch):
                contenders["pytorch"] = pytorch
            seconds = benchmark_timing.alternating(
                contenders, rounds=_ROUNDS, label=f"train {name} {dtype}", least_seconds=0.0
            )
            count = batch_size * benchmark_timing.steps_at_once()
            results[name][dtype] = {
                "batch_size": batch_size,
                "images_per_second": count / seconds["none"],
                "images_per_second_with_policy": count / seconds[POLICY],
                "ratio_with_policy": seconds["none"] / seconds[POLICY],
                "ratio_to_pytorch": pytorch,
            }
            if callable(pytorch):
                results[name][dtype] |= {
                    "pytorch_images_per_second": count / seconds["pytorch"],
                    "ratio_to_pytorch": seconds["pytorch"] / seconds["none"],
                }
    return results


def limits(trained: dict[str, Any], device_kind: str) -> dict[str, Any] | str:
    """The share of the device's limits that trainings without policy, from `run`, reach, by network and type.

    A text where the limits of the device are not known.
    """
    peaks = next((peaks for kind, peaks in PEAKS.items() if kind in device_kind), None)
    if peaks is None:
        return f"not run: no peaks are known of {device_kind}"
    results = {}
    for name, work in WORK.items():
        for dtype, measured in trained.get(name, {}).items():
            arithmetic = getattr(peaks, dtype) / work.operations
            traffic = peaks.bandwidth / (_PASSES * work.outputs * _BYTES[dtype])
            results.setdefault(name, {})[dtype] = {
                "images_per_second": measured["images_per_second"],
                "arithmetic_images_per_second": arithmetic,
                "memory_images_per_second": traffic,
                "share_of_arithmetic": measured["images_per_second"] / arithmetic,
                "share_of_memory": measured["images_per_second"] / traffic,
            }
    return results
