"""Network layers and their initialisers: plain functions over plain dicts of arrays.

Contract: feature maps are NHWC, kernels HWIO, linear weights [in, out]. Parameters are dicts
`{"weight", "bias"}` (convolution, dense; a missing "bias" means none) and `{"scale", "bias"}`
(batch norm); running statistics are `{"mean", "variance"}`. Inputs have the dtype of the parameters
and the results too. Every layer supports forward mode, reverse mode and any nesting of the two.

Symbols: B batch, H and W height and width, C channels, k kernel size.

The arithmetic is PyTorch's: padding of k // 2 on both sides, also under a stride (XLA's "SAME" pads
the right side more there); biased variance to normalise and unbiased variance in the running
average; `momentum` as the weight of the NEW batch. With `axis_name` the batch statistics are those
of all devices together, as in PyTorch's SyncBatchNorm.

Copy alone: needs jax only.
"""

import math

import jax
import jax.numpy as jnp

EPSILON = 1e-5


def uniform_fan_in(key, shape, fan_in):
    """Draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for weights and biases.

    Args:
      key: typed PRNG key, consumed.
      shape: shape of the result.
      fan_in: number of inputs of one output unit, k * k * C_in for a convolution; at least 1.
    Returns:
      float32 array of `shape`.
    """
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def he_normal_fan_out(key, shape):
    """Draws a kernel from N(0, 2 / (k * k * C_out)).

    Args:
      key: typed PRNG key, consumed.
      shape: (k, k, C_in, C_out).
    Returns:
      float32 array of `shape`.
    Reference: He et al. 2015, arXiv:1502.01852, equation 14 (the backward case).
    """
    height, width, _, out_channels = shape
    deviation = math.sqrt(2.0 / (height * width * out_channels))
    return deviation * jax.random.normal(key, shape, jnp.float32)


def init_conv(key, kernel_size, in_channels, out_channels):
    """Parameters of a convolution with bias, PyTorch's default initialisation.

    Args:
      key: typed PRNG key, consumed.
      kernel_size: k, odd.
      in_channels: C_in.
      out_channels: C_out.
    Returns:
      {"weight": [k, k, C_in, C_out], "bias": [C_out]}, float32.
    """
    params = init_dense(key, kernel_size * kernel_size * in_channels, out_channels)
    shape = (kernel_size, kernel_size, in_channels, out_channels)
    return {"weight": params["weight"].reshape(shape), "bias": params["bias"]}


def init_dense(key, in_features, out_features):
    """Parameters of a linear layer, PyTorch's default initialisation.

    Args:
      key: typed PRNG key, consumed.
      in_features: number of inputs.
      out_features: number of outputs.
    Returns:
      {"weight": [in_features, out_features], "bias": [out_features]}, float32.
    """
    # Weight and bias follow one distribution, so one draw serves both: half the programs to compile.
    rows = uniform_fan_in(key, (in_features + 1, out_features), in_features)
    return {"weight": rows[:-1], "bias": rows[-1]}


def init_batch_norm(channels):
    """Parameters and running statistics of a batch norm: the identity of a standardised input.

    Args:
      channels: C.
    Returns:
      ({"scale": ones [C], "bias": zeros [C]}, {"mean": zeros [C], "variance": ones [C]}), float32.
    """
    # Four arrays of their own: donating a state in which two leaves share a buffer is an error.
    params = {"scale": jnp.ones(channels, jnp.float32), "bias": jnp.zeros(channels, jnp.float32)}
    stats = {"mean": jnp.zeros(channels, jnp.float32), "variance": jnp.ones(channels, jnp.float32)}
    return params, stats


def conv(params, inputs, *, stride=1):
    """Two-dimensional convolution with symmetric padding k // 2.

    Args:
      params: {"weight": [k, k, C_in, C_out], "bias": [C_out] or absent}, k odd.
      inputs: [B, H, W, C_in], dtype of the parameters.
      stride: step in both directions.
    Returns:
      [B, ceil(H / stride), ceil(W / stride), C_out].
    Raises:
      ValueError: inputs of another rank or channel count, or an even kernel.
    """
    weight = params["weight"]
    height, width, in_channels, _ = weight.shape
    if inputs.ndim != 4 or inputs.shape[-1] != in_channels:
        raise ValueError(f"conv: expected inputs [B, H, W, {in_channels}], got {inputs.shape}")
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"conv: expected an odd kernel, got {height} x {width}")
    outputs = jax.lax.conv_general_dilated(
        inputs,
        weight,
        window_strides=(stride, stride),
        padding=((height // 2, height // 2), (width // 2, width // 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return outputs + params["bias"] if "bias" in params else outputs


def dense(params, inputs):
    """Linear layer, inputs @ weight + bias.

    Args:
      params: {"weight": [in, out], "bias": [out] or absent}.
      inputs: [..., in].
    Returns:
      [..., out].
    Raises:
      ValueError: inputs with another number of features.
    """
    in_features = params["weight"].shape[0]
    if inputs.ndim < 1 or inputs.shape[-1] != in_features:
        raise ValueError(f"dense: expected inputs [..., {in_features}], got {inputs.shape}")
    outputs = inputs @ params["weight"]
    return outputs + params["bias"] if "bias" in params else outputs


def batch_norm(params, stats, inputs, is_training, *, momentum, axis_name=None):
    """Batch normalisation over every axis but the last.

      y = scale * (x - mean) / sqrt(variance + 1e-5) + bias
      stored <- (1 - momentum) * stored + momentum * batch

    In training, mean and biased variance are those of the batch, else the stored ones. The variance
    that enters the store is the unbiased one.

    Args:
      params: {"scale": [C], "bias": [C]}.
      stats: {"mean": [C], "variance": [C]}, the stored statistics.
      inputs: [..., C], rank 2 or more.
      is_training: Python bool.
      momentum: weight of the new batch, in [0, 1] (PyTorch's sense; flax's is 1 - momentum).
      axis_name: mapped axis whose devices share one batch in equal parts, or None.
    Returns:
      (outputs [..., C], new statistics); the statistics are `stats` itself when not training.
    Gradient: through mean and variance of the batch to the outputs; none to the stored statistics.
    Raises:
      ValueError: inputs of another rank or channel count, or one value per channel in training.
    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """
    channels = params["scale"].shape[0]
    if inputs.ndim < 2 or inputs.shape[-1] != channels:
        raise ValueError(f"batch_norm: expected inputs [..., {channels}], got {inputs.shape}")
    if not is_training:
        return _normalize(params, inputs - stats["mean"], stats["variance"]), stats

    axes = tuple(range(inputs.ndim - 1))
    count = math.prod(inputs.shape[:-1])
    mean = jnp.mean(inputs, axes)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
        count *= jax.lax.psum(1, axis_name)
    if count < 2:
        raise ValueError(
            f"batch_norm: training needs two values per channel or more, got inputs {inputs.shape}"
        )
    # Deviations from the mean of ALL devices: their mean square is the variance without the
    # cancellation of E[x^2] - E[x]^2.
    centered = inputs - mean
    variance = jnp.mean(jnp.square(centered), axes)
    if axis_name is not None:
        variance = jax.lax.pmean(variance, axis_name)
    batch = {"mean": mean, "variance": variance * (count / (count - 1))}
    new_stats = jax.tree.map(
        lambda old, new: (1.0 - momentum) * old + momentum * jax.lax.stop_gradient(new),
        stats,
        batch,
    )
    return _normalize(params, centered, variance), new_stats


def _normalize(params, centered, variance):
    return centered * (params["scale"] * jax.lax.rsqrt(variance + EPSILON)) + params["bias"]


def global_average_pool(inputs):
    """Mean over the image plane.

    Args:
      inputs: [B, H, W, C].
    Returns:
      [B, C].
    Raises:
      ValueError: inputs of another rank.
    """
    if inputs.ndim != 4:
        raise ValueError(f"global_average_pool: expected inputs [B, H, W, C], got {inputs.shape}")
    return jnp.mean(inputs, axis=(1, 2))
