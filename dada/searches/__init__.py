"""The searches, a folder for each method. All give the same names:

    Config                                                  static settings, hashable
    SearchState                                             what a search carries from step to step
    init(key, config, params, batch_stats) -> SearchState
    step(config, state, train_batch, valid_batch, axis_name=None) -> (SearchState, metrics)
    extract_policy(config, state, **metadata) -> Policy

`init` consumes a typed key and takes a fresh network; DeepAA's is trained. `step` is pure: jit it with the
config static, scan it, vmap it over seeds, or pmap it with `axis_name`, the mapped axis over which both
batches are divided. Batches hold images uint8 [B, H, W, 3] and labels int32 [B], or, with the `losses` of a
detector in the Config, `augment.ImagesWithBoxes` and labels of the boxes [B, N]; the training batch is not
augmented yet, the validation batch stays as it is. Every random number belongs to the step or to one image
of the whole batch, so the division changes nothing but rounding. Metrics are scalars, and `op_mass` [number
of ops]. Wrong shapes or dtypes raise AssertionError. `extract_policy` wants a concrete state; `metadata` are
fields of the artefact such as `seed`, `data_set` and `source`. It raises ValueError if the rows
of `config.space` are not those of the search space of its name.

`losses` holds what the methods have in common besides `dada.gradients`. Copy the whole package.
"""
