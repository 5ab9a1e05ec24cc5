"""Differentiable augmentation-policy search in plain JAX: DADA, on a core that other methods share.

Read from the bottom up: `color_ops` and `spatial_ops` (one image, one op) are named and given ranges
by `op_table`; a `policy` is sampled by `sampling` into draws that `augment` applies to a batch;
`relaxation`, `estimators` and `hypergradient` are the mathematics of the searches and import nothing
of this package; `dada_search` puts them together, and `policy_training` judges what it found.
Import modules: `from dada import color_ops`.
"""
