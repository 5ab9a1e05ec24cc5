"""A function that is compiled in parts gives what it gives as a whole, and compiles equal passes once."""

import functools

import chex
import jax
import jax.numpy as jnp
from bright_squares import batch
from dada_problem import DIRECTED, config, spread, start

from dada.searches import dada
from experiments.runs import compiled_parts, devices


@jax.jit
def one_pass(images, kernel, key):
    outputs = jax.lax.conv(images, kernel, (1, 1), "SAME")
    return outputs + jax.random.uniform(key, outputs.shape), {"sum": images.sum()}


def passes(images, kernel, key):
    """Passes of which the last one needs the others."""
    keys = jax.random.split(key, 3)
    found = [one_pass(images + i, kernel, keys[i]) for i in range(3)]
    after, _ = one_pass(sum(outputs for outputs, _ in found), kernel, key)
    unchanged = {"images": images, "constant": 3.0, "table": jnp.arange(4.0)}
    return {**unchanged, "sums": [2 * rest["sum"] for _, rest in found]}, jnp.sin(after).sum()


ARGUMENTS = (jnp.ones((2, 3, 8, 8)), jnp.full((3, 3, 3, 3), 0.1), jax.random.key(0))


def test_equal_passes_share_a_program():
    program = compiled_parts.compiled(passes, *ARGUMENTS)
    # Before the passes, a pass, before the last pass, after it.
    assert isinstance(program, compiled_parts.Parts) and len(program._programs) == 4
    assert sum("convolution(" in one.as_text() for one in program._programs) == 1
    chex.assert_trees_all_close(program(*ARGUMENTS), jax.jit(passes)(*ARGUMENTS), rtol=1e-5)
    assert program.memory_analysis().argument_size_in_bytes > 0


def test_passes_of_different_sizes_are_programs_of_their_own():
    def step(images, kernel, key):
        first, _ = one_pass(images, kernel, key)
        second, _ = one_pass(images[:1] + first.mean(), kernel, key)
        return first, second

    program = compiled_parts.compiled(step, *ARGUMENTS)
    assert sum("convolution(" in one.as_text() for one in program._programs) == 2
    chex.assert_trees_all_close(program(*ARGUMENTS), jax.jit(step)(*ARGUMENTS), rtol=1e-5)


def test_one_pass_and_passes_on_several_devices_are_one_program():
    for function in (lambda *arguments: one_pass(*arguments), devices.divided(passes, devices.mesh(2))):
        assert not isinstance(compiled_parts.compiled(function, *ARGUMENTS), compiled_parts.Parts)


def test_a_step_of_dada_shares_its_passes():
    settings = config(score="cosine", space=DIRECTED, num_draws=3, estimator="reinforce")
    step = functools.partial(dada.step, settings)
    arguments = spread(start(settings), settings), batch(0), batch(1)
    program = compiled_parts.compiled(step, *arguments)
    # Passes of both batches, which have one size, share a program; one before, between and after them.
    assert len(program._programs) == 4
    assert sum("convolution(" in one.as_text() for one in program._programs) == 1
    state, metrics = program(*arguments)
    expected, expected_metrics = jax.jit(step)(*arguments)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4, atol=1e-6)
    for name in ("params", "momentum"):
        found, wanted = (getattr(one.train, name) for one in (state, expected))
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.policy, expected.policy, rtol=1e-3, atol=1e-5)
