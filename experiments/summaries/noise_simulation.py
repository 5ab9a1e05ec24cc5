"""What the update rules of the released DADA code make of pure noise.

`simulate` runs the policy update of the official preset, its `policy_gradient` and Adam, on a loss whose
derivative along the validation gradient is drawn from a normal distribution, independent of the policy.
Nothing can be learned from it: what the policy looks like in the end is the random walk of the rules. Adam
divides out the scale of the noise.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from dada import ops, policies
from dada.searches import dada_official
from dada.searches.dada import space as policy_space
from dada.searches.dada_official import gradient as official_gradient
from dada.searches.dada_official import search as official_search

_CONFIG = dada_official.Config(apply=lambda *_: None, space=ops.search_space("dada"))


@functools.partial(jax.jit, static_argnums=1)
def _walk(key, num_steps):
    """Raw parameters after `num_steps` updates."""
    optimizer = official_search.policy_optimizer(_CONFIG)
    start = dada_official.init(key, _CONFIG, (), ())

    def loss(params, inputs):
        constant, slope = params  # so that loss and its derivative by the images are noise of their own
        return constant + slope * jnp.sum(inputs)

    def step(carry, key):
        parameters, optimizer_state = carry
        draw_key, noise_key = jax.random.split(key)
        noise = tuple(jax.random.normal(noise_key, (2,)))
        gradient, _ = official_gradient.policy_gradient(
            loss,
            lambda function: jax.jvp(function, ((0.0, 0.0),), (noise,))[1],
            parameters,
            start.control,  # whatever it is, it cancels
            policy_space.draw(draw_key, official_gradient.as_logits(parameters)),
            draw_key,
            jnp.float32(0.5),
            jnp.zeros(1),
        )
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(parameters, updates), optimizer_state), None

    carry = start.policy, optimizer.init(start.policy)
    (parameters, _), _ = jax.lax.scan(step, carry, jax.random.split(key, num_steps))
    return parameters


def simulate(key: jax.Array, num_steps: int) -> policies.Policy:
    """The policy that an official search of `num_steps` updates publishes if its losses are noise.

    It is of kind sub_policies: 25 pairs of the space "dada". The released code reads it after 19 of 20
    epochs.
    """
    parameters = _walk(key, num_steps)
    state = dada_official.SearchState(key, None, parameters, None, None, epoch_policy=parameters)
    return dada_official.extract_policy(_CONFIG, state, source="pure noise under the official update rules")
