"""The images of the small searches: a bright square on dark ground, whose place is the class."""

import jax.numpy as jnp
import numpy as np

from dada.training import sgd

SIZE, BATCH, CLASSES = 8, 16, 3


def batch(seed, size=BATCH):
    """Images uint8 [size, SIZE, SIZE, 3] and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, size)
    images = generator.integers(0, 60, (size, SIZE, SIZE, 3))
    for image, label in zip(images, labels):
        image[1:5, 2 * label : 2 * label + 3] += 150
    return sgd.Batch(jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32))
