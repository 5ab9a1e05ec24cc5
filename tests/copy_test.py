"""What is promised to be copied works where it is copied to: elsewhere, under another name, by itself."""

import pathlib
import shutil
import subprocess
import sys

DADA = pathlib.Path(__file__).resolve().parent.parent / "dada"
# Name of the new package: what is copied into it. A room that stands alone becomes the package.
COPIES = {
    "pixels": "ops",
    "calculus": "gradients",
    "networks": "models",
    "detectors": "detection",
    "augmentation": ("ops", "policies", "augment"),
    "trainer": ("ops", "policies", "augment", "training", "checks.py"),
    "everything": ".",
}
FILES = (
    *("gradients/relaxation", "gradients/estimators", "gradients/bilevel"),
    *("training/sgd", "training/schedules"),
)

SCRIPT = """
import sys

sys.path.insert(0, sys.argv[1])
# An installed library must not help; None makes an import fail.
sys.modules.update(dada=None, experiments=None)

import jax
import jax.numpy as jnp
import numpy as np

images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
labels = jnp.array([0, 1])

import pixels
image = jnp.asarray(images[0] / np.float32(255))
inverted = pixels.apply_op("Invert", image, jnp.float32(0), jnp.zeros(2))
np.testing.assert_allclose(inverted, 1 - image, atol=1e-6)

from calculus import bilevel, estimators, relaxation
score = bilevel.alignment(lambda theta: theta**2, jnp.array([1.0, 3.0]), jnp.array([1.0, 0.5]))
np.testing.assert_allclose(score, [2.0, 3.0])
assert relaxation.gumbel_softmax(jax.random.key(0), jnp.zeros(3), 0.5).shape == (3,)

import networks
network, config = networks.by_name("wrn_10_1", 5, 8)
params, stats = jax.jit(network.init, static_argnums=1)(jax.random.key(0), config)
logits, _ = jax.jit(network.apply, static_argnums=3)(params, stats, images / np.float32(255), False)
assert logits.shape == (2, 5)

from detectors import average_precision, candidates, losses, suppression
anchor, label = jnp.array([[2.0, 2.0, 6.0, 6.0]]), jnp.zeros((1, 1), int)
logits, deltas = jnp.full((1, 1, 1), 9.0), jnp.zeros((1, 1, 4))
loss, _ = losses.per_image(logits, deltas, anchor, anchor[None], label, label == 0)
assert loss < 1e-6
found = suppression.detections(candidates.best(logits, deltas, anchor, (8, 8)), np.ones((1, 2)))
truth = average_precision.Truth(found[0].boxes, np.zeros(1, int), np.ones(1), np.zeros(1, bool))
np.testing.assert_allclose(average_precision.evaluate([truth], found, 1).numbers["AP"], 1)

from augmentation import augment, ops, policies

@jax.jit
def augmented(key, images):
    policy = policies.load("dada_cifar10")
    draws = augment.sample(key, policy, 2, (8, 8))
    return augment.apply_draws(images, draws, op_ids=ops.op_ids(policies.space(policy)))

assert augmented(jax.random.key(0), images).dtype == jnp.uint8

from trainer import policies
from trainer.training import policy_training, sgd

def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    return images.reshape(2, -1) @ params, batch_stats

config = policy_training.Config(apply, policies.identity(), steps_per_epoch=1)
state = sgd.init(jnp.zeros((8 * 8 * 3, 5)), {})
state, metrics = jax.jit(policy_training.step, static_argnums=1)(
    jax.random.key(0), config, state, images, labels
)
np.testing.assert_allclose(metrics["loss"], np.log(5), rtol=1e-5)

from everything.searches import dada, dada_official, ddas, deepaa
import everything.ops
space = everything.ops.search_space("strength")
search = dada.init(jax.random.key(0), dada.Config(apply, space), state.params, {})
assert search.policy.op.shape == (1, 1, 105)

import bilevel, estimators, relaxation, schedules, sgd
np.testing.assert_allclose(sgd.cross_entropy(jnp.zeros((2, 5)), labels), np.log(5), rtol=1e-6)
"""


def test_copies_work_alone_and_under_another_name(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for name, rooms in COPIES.items():
        if isinstance(rooms, str):
            shutil.copytree(DADA / rooms, tmp_path / name, ignore=ignored)
            continue
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for room in rooms:
            if room.endswith(".py"):
                shutil.copy(DADA / room, tmp_path / name)
            else:
                shutil.copytree(DADA / room, tmp_path / name / room, ignore=ignored)
    for file in FILES:
        shutil.copy(DADA / f"{file}.py", tmp_path)
    # -I: neither this folder nor PYTHONPATH is searched.
    command = [sys.executable, "-I", "-c", SCRIPT, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
