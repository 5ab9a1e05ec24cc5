"""Learning rates against the numbers of the published recipes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.training import schedules


def dada(epoch):
    """0.1, warm-up times 4 in 5 epochs, cosine over all 200."""
    return schedules.with_warmup(
        epoch,
        functools.partial(schedules.cosine, learning_rate=0.4, num_epochs=200),
        learning_rate=0.1,
        warmup_epochs=5,
        multiplier=4.0,
    )


def imagenet(epoch):
    """0.2, warm-up times 2 in 3 epochs, then steps at 90, 180 and 240 of the inner clock."""
    return schedules.with_warmup(
        epoch,
        functools.partial(schedules.step, learning_rate=0.4, decay_epochs=(90, 180, 240)),
        learning_rate=0.2,
        warmup_epochs=3,
        multiplier=2.0,
    )


def dada_search(epoch):
    """0.1 to 0.001 in 20 epochs."""
    return schedules.cosine(epoch, learning_rate=0.1, num_epochs=20, floor=0.001)


def deepaa(epoch, cosine_epochs=195):
    """0.1 with a warm-up from 0."""
    return schedules.with_warmup(
        epoch,
        functools.partial(schedules.cosine, learning_rate=0.1, num_epochs=cosine_epochs),
        learning_rate=0.1,
        warmup_epochs=5,
        multiplier=1.0,
    )


@pytest.mark.parametrize(
    ("schedule", "epoch", "expected"),
    [
        (dada, 0, 0.1),
        (dada, 2.5, 0.25),
        (dada, 5, 0.4),
        (dada, 100, 0.2157),
        (dada, 200, 0.00062),
        (imagenet, 0, 0.2),
        (imagenet, 1.5, 0.3),
        (imagenet, 92.99, 0.4),
        (imagenet, 93, 0.04),
        (imagenet, 182.99, 0.04),
        (imagenet, 183, 0.004),
        (imagenet, 243, 0.0004),
        (deepaa, 0, 0.0),
        (deepaa, 2.5, 0.05),
        (deepaa, 5, 0.1),
        (deepaa, 200, 0.0),
        (functools.partial(deepaa, cosine_epochs=200), 200, 1.5e-4),  # as DDAS trains
        *((dada_search, epoch, rate) for epoch, rate in ((0, 0.1), (10, 0.0505), (20, 0.001), (30, 0.001))),
    ],
)
def test_published_learning_rates(schedule, epoch, expected):
    # The references give the small ends to two digits.
    rtol = 0.03 if 0 < expected < 1e-3 else 1e-4
    np.testing.assert_allclose(schedule(epoch), expected, rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.float32(epoch)), schedule(epoch), rtol=1e-5, atol=1e-8)


def test_without_warmup_the_schedule_starts_at_once_and_never_rises_again():
    cosine = functools.partial(schedules.cosine, learning_rate=0.1, num_epochs=10)
    plain = functools.partial(
        schedules.with_warmup, schedule=cosine, learning_rate=0.1, warmup_epochs=0, multiplier=1.0
    )
    np.testing.assert_allclose(plain(0), 0.1)
    np.testing.assert_allclose(plain(5), 0.05)
    assert float(plain(10)) == float(plain(12)) == 0.0


@pytest.mark.parametrize(("epochs", "multiplier"), [(5, 0.5), (0, 4.0)])
def test_a_warmup_that_cannot_be_is_refused(epochs, multiplier):
    with pytest.raises(ValueError, match="warm-up: got multiplier"):
        schedules.with_warmup(
            1.0, lambda epoch: epoch, learning_rate=0.1, warmup_epochs=epochs, multiplier=multiplier
        )
