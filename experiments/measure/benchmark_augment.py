"""Images per second of applying a policy: `augment.apply_draws`, a Pillow loop, and `vmap(lax.switch)`.

All three apply the same draws to the same images and give the same pixels. With two ops per image the draws
are those of the published policy dada_cifar10, which leaves out ops at random; with one and six ops, uniform
ops of its search space at uniform levels. Pillow runs in one thread, from arrays to arrays; images that an
accelerator augments lie there already.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dada import augment, ops, policies
from experiments.data import pillow_ops
from experiments.measure import benchmark_timing, benchmark_train
from experiments.runs import compiled_loop

POLICY = "dada_cifar10"
NUM_OPS = (1, 2, 6)
SIDES = (32, 224)
_SMALL_SIDE = 32  # of images that come in full batches
_ROUNDS = 5
# A batch of images with larger sides is smaller by this factor.
_LARGE_IMAGE_FACTOR = {"cpu": 32}
_STEP_NETWORK = "wrn_40_2"


def space() -> ops.SearchSpace:
    """The search space of the published policy."""
    return policies.space(policies.load(POLICY))


def make_draws(key: jax.Array, num_ops: int, batch_size: int, side: int) -> ops.Draws:
    """Draws of the published policy for two ops, else uniform ones of its search space."""
    if num_ops == 2:
        return augment.sample(key, policies.load(POLICY), batch_size, (side, side))
    shape = (batch_size, num_ops)
    row_key, level_key, sign_key, center_key = jax.random.split(key, 4)
    return augment.assemble_draws(
        space(),
        jax.random.randint(row_key, shape, 0, len(space().rows)),
        jnp.ones(shape, bool),
        jax.random.uniform(level_key, shape),
        augment.random_signs(sign_key, shape),
        augment.random_centers(center_key, shape, (side, side)),
    )


def images_of_side(images: np.ndarray, batch_size: int, side: int) -> np.ndarray:
    """A batch of square images, uint8 [batch_size, side, side, 3]: given ones, repeated both ways."""
    images = np.resize(images, (batch_size, *images.shape[1:]))
    times = [-(-side // extent) for extent in images.shape[1:3]]
    return np.ascontiguousarray(np.tile(images, (1, *times, 1))[:, :side, :side])


def pillow_loop(images: np.ndarray, draws: ops.Draws) -> Callable[[], np.ndarray]:
    """The same draws in a loop over images; what the draws say is looked up beforehand."""
    op, value, center = (np.asarray(leaf) for leaf in draws)
    calls = [
        [functools.partial(pillow_ops.PILLOW[ops.OPS[o]], v=v, c=c) for o, v, c in zip(*of_image) if o]
        for of_image in zip(op, value, center)
    ]

    def run():
        augmented = []
        for image, of_image in zip(images, calls):
            picture = Image.fromarray(image)
            for call in of_image:
                picture = call(picture)
            augmented.append(np.asarray(picture))
        return np.stack(augmented)

    return run


def vmap_switch(op_ids: tuple[int, ...], images: jax.Array, draws: ops.Draws) -> jax.Array:
    """`apply_op` behind a `lax.switch` for one image, and vmap: which evaluates every op for every image."""
    branches = [functools.partial(ops.apply_op, ops.OPS[op]) for op in op_ids]

    def slot(image, draw):
        return jax.lax.switch(draw[0], branches, image, *draw[1:]), None

    def one(image, *draw):
        return jax.lax.scan(slot, image, draw)[0]

    branch = jnp.searchsorted(jnp.asarray(op_ids), draws.op)
    augmented = jax.vmap(one)(images.astype(jnp.float32) / 255.0, branch, draws.value, draws.center)
    return jnp.round(augmented * 255.0).astype(jnp.uint8)


def contenders(images: np.ndarray, draws: ops.Draws) -> dict[str, Callable[[], Any]]:
    """The ways to apply some draws, ours first."""
    op_ids = ops.op_ids(space())
    on_device = jax.device_put(images)
    ours = jax.jit(functools.partial(augment.apply_draws, op_ids=op_ids))
    naive = jax.jit(functools.partial(vmap_switch, op_ids))
    return {
        "apply_draws": lambda: ours(on_device, draws),
        "pillow": pillow_loop(images, draws),
        "vmap_switch": lambda: naive(on_device, draws),
    }


def run(images: np.ndarray, batch_size: int, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """Measures all numbers of ops and sizes of images, on uint8 [N, H, H, 3] real ones.

    `batch_size` is that of images of the small side. `quick` is two ops and that side alone, without the
    training step, which takes long to compile.

    Returns:
      By "opsK_SxS": images per second of all contenders, and how many times as fast ours is as each. On an
      accelerator also its part of the time of a training step on a batch of as many images of 32 x 32.
    """
    sides, all_num_ops = (SIDES[:1], (2,)) if quick else (SIDES, NUM_OPS)
    results = {"dtype": "uint8"}
    for side in sides:
        factor = 1 if side <= _SMALL_SIDE else _LARGE_IMAGE_FACTOR.get(jax.default_backend(), 8)
        count = max(1, batch_size // factor)
        batch = images_of_side(images, count, side)
        for num_ops in all_num_ops:
            draws = make_draws(jax.random.key(seed), num_ops, count, side)
            calls = contenders(batch, draws)
            if compiled_loop.scans() and side == _SMALL_SIDE and not quick:
                steps = benchmark_train.training_steps(_STEP_NETWORK, "float32", "none", images, count, seed)
                calls["training_steps"] = steps
            name = f"ops{num_ops}_{side}x{side}"
            seconds = benchmark_timing.alternating(calls, rounds=_ROUNDS, label=f"augment {name}")
            ours = seconds["apply_draws"]
            results[name] = {
                "batch_size": count,
                "ops_applied_per_image": float(jnp.mean(jnp.sum(draws.op != 0, axis=1))),
                "images_per_second": count / ours,
                "pillow_images_per_second": count / seconds["pillow"],
                "vmap_switch_images_per_second": count / seconds["vmap_switch"],
                "ratio_to_pillow": seconds["pillow"] / ours,
                "ratio_to_vmap_switch": seconds["vmap_switch"] / ours,
            }
            if "training_steps" in seconds:
                step = seconds["training_steps"] / benchmark_timing.steps_at_once()
                results[name]["share_of_training_step"] = ours / step
    return results
