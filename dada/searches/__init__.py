"""The searches, a folder for each method.

All give the same names: Config, SearchState, init, step, extract_policy.

    from dada.searches import ddas
    state = ddas.init(key, config, params, batch_stats)
    state, metrics = jax.jit(ddas.step, static_argnums=0)(config, state, train_batch, valid_batch)
    policy = ddas.extract_policy(config, state)

`losses` holds what they have in common besides `dada.gradients`. Copy the whole package.
"""
