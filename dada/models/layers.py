"""Network layers and their initialisers: plain functions over plain dicts of arrays.

Contract: feature maps are NHWC, kernels HWIO, linear weights [in, out]. Parameters are dicts
`{"weight", "bias"}` (convolution, dense; a missing "bias" means none) and `{"scale", "bias"}`
(norms); running statistics are `{"mean", "variance"}`, and `{}` of a group norm. Inputs have the dtype
of the parameters and the results too. Every layer supports forward mode, reverse mode and any nesting.
Noise belongs to one image of the whole batch, wherever that image is computed: a batch that is
divided over devices sees the numbers that it would see on one.

Symbols: B batch, H and W height and width, C channels, k kernel size.

The arithmetic is PyTorch's: padding of k // 2 on both sides, also under a stride (XLA's "SAME" pads
the right side more there); biased variance to normalise and unbiased variance in the running
average; `momentum` as the weight of the NEW batch. With `axis_name` the batch statistics are those
of all devices together, as in PyTorch's SyncBatchNorm.
"""

import math

import jax
import jax.numpy as jnp

EPSILON = 1e-5
GROUP_CHANNELS = 8
Params = dict[str, jax.Array]


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
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


def init_he_conv(key: jax.Array, kernel_size: int, in_channels: int, out_channels: int) -> Params:
    """Parameters of a convolution without bias, from N(0, 2 / (k * k * C_out)).

    Args:
      key: typed PRNG key, consumed.
      kernel_size: k, odd.
      in_channels: C_in.
      out_channels: C_out.
    Returns:
      {"weight": [k, k, C_in, C_out]}, float32.
    Reference: He et al. 2015, arXiv:1502.01852, equation 14 (the backward case).
    """
    shape = (kernel_size, kernel_size, in_channels, out_channels)
    deviation = math.sqrt(2.0 / (kernel_size * kernel_size * out_channels))
    return {"weight": deviation * jax.random.normal(key, shape, jnp.float32)}


def init_conv(key: jax.Array, kernel_size: int, in_channels: int, out_channels: int) -> Params:
    """Parameters of a convolution with bias, PyTorch's default initialisation.

    Args: as of `init_he_conv`.
    Returns:
      {"weight": [k, k, C_in, C_out], "bias": [C_out]}, float32.
    """
    params = init_dense(key, kernel_size * kernel_size * in_channels, out_channels)
    shape = (kernel_size, kernel_size, in_channels, out_channels)
    return {"weight": params["weight"].reshape(shape), "bias": params["bias"]}


def init_dense(key: jax.Array, in_features: int, out_features: int) -> Params:
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


def init_batch_norm(channels: int) -> tuple[Params, Params]:
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


def init_group_norm(channels: int) -> tuple[Params, Params]:
    """Parameters of a group norm, as of `init_batch_norm`, and {}: it keeps no statistics.

    Args:
      channels: C, a multiple of 8.
    Raises:
      ValueError: another number of channels.
    """
    if channels % GROUP_CHANNELS:
        raise ValueError(f"group_norm: expected a multiple of {GROUP_CHANNELS} channels, got {channels}")
    return init_batch_norm(channels)[0], {}


def conv(params: Params, inputs: jax.Array, *, stride: int = 1) -> jax.Array:
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


def dense(params: Params, inputs: jax.Array) -> jax.Array:
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


def batch_norm(
    params: Params,
    stats: Params,
    inputs: jax.Array,
    is_training: bool,
    *,
    momentum: float | jax.Array,
    axis_name: str | None = None,
) -> tuple[jax.Array, Params]:
    """Batch normalisation over every axis but the last.

      y = scale * (x - mean) / sqrt(variance + 1e-5) + bias
      stored <- (1 - momentum) * stored + momentum * batch

    In training, mean and biased variance are those of the batch, else the stored ones. The variance
    that enters the store is the unbiased one. All of it is computed in float32 where the inputs are
    narrower: in bfloat16 the mean of a thousand numbers, and their distance from it, lose all digits.

    Args:
      params: {"scale": [C], "bias": [C]}.
      stats: {"mean": [C], "variance": [C]}, the stored statistics.
      inputs: [..., C], rank 2 or more.
      is_training: Python bool.
      momentum: weight of the new batch, in [0, 1] (PyTorch's sense; flax's is 1 - momentum).
      axis_name: mapped axis whose devices share one batch in equal parts, or None.
    Returns:
      (outputs [..., C] in the dtype of the inputs, new statistics); the statistics are `stats` itself
      when not training.
    Gradient: through mean and variance of the batch to the outputs; none to the stored statistics.
    Raises:
      ValueError: inputs of another rank or channel count, or one value per channel in training.
    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """
    channels = params["scale"].shape[0]
    if inputs.ndim < 2 or inputs.shape[-1] != channels:
        raise ValueError(f"batch_norm: expected inputs [..., {channels}], got {inputs.shape}")
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    if not is_training:
        outputs = _normalize(params, wide - stats["mean"], stats["variance"])
        return outputs.astype(inputs.dtype), stats

    count = math.prod(inputs.shape[:-1])
    if axis_name is not None:
        count *= jax.lax.psum(1, axis_name)
    if count < 2:
        raise ValueError(
            f"batch_norm: training needs two values per channel or more, got inputs {inputs.shape}"
        )
    moments = _moments_in_one_pass if _saves_reads() else _moments
    centered, mean, variance = moments(wide, axis_name)
    batch = {"mean": mean, "variance": variance * (count / (count - 1))}
    new_stats = jax.tree.map(
        lambda old, new: (1.0 - momentum) * old + momentum * jax.lax.stop_gradient(new), stats, batch
    )
    return _normalize(params, centered, variance).astype(inputs.dtype), new_stats


def _saves_reads():
    """Whether a read of the activations is what a norm costs: not on CPU, where XLA fuses no two sums."""
    return jax.default_backend() != "cpu"


def _mean(inputs, axis_name):
    """Mean over all axes but the last, of all devices together."""
    mean = jnp.mean(inputs, tuple(range(inputs.ndim - 1)))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _moments(inputs, axis_name):
    """Deviations from the mean, the mean, and their mean square, the biased variance."""
    mean = _mean(inputs, axis_name)
    centered = inputs - mean
    return centered, mean, _mean(jnp.square(centered), axis_name)


def _moments_in_one_pass(inputs, axis_name):
    """As `_moments`; both sums need no more than the inputs, so that one read of them is enough.

      variance = E[d^2] - E[d]^2,   d = x - shift

    With a shift of 0, and the running mean is 0 at first, the difference cancels where the mean is large. The
    shift is a value of the batch, from its middle, where no padding is.
    """
    shift = jax.lax.stop_gradient(inputs[tuple(size // 2 for size in inputs.shape[:-1])])
    shift = shift if axis_name is None else jax.lax.pmean(shift, axis_name)
    shifted = inputs - shift
    mean = _mean(shifted, axis_name)
    variance = jnp.maximum(_mean(jnp.square(shifted), axis_name) - jnp.square(mean), 0.0)
    return shifted - mean, shift + mean, variance


def group_norm(params: Params, inputs: jax.Array) -> jax.Array:
    """Group normalisation: each image by itself, 8 neighbouring channels at a time.

      y = scale * (x - mean) / sqrt(variance + 1e-5) + bias

    Mean and biased variance are those of a group over the image plane; in float32 where the inputs are
    narrower.

    Args:
      params: {"scale": [C], "bias": [C]}.
      inputs: [B, H, W, C].
    Returns:
      [B, H, W, C], dtype of the inputs.
    Gradient: through mean and variance.
    Raises:
      ValueError: inputs of another rank or channel count.
    Reference: Wu and He 2018, arXiv:1803.08494.
    """
    channels = params["scale"].shape[0]
    if inputs.ndim != 4 or inputs.shape[-1] != channels:
        raise ValueError(f"group_norm: expected inputs [B, H, W, {channels}], got {inputs.shape}")
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    grouped = wide.reshape(*inputs.shape[:3], -1, GROUP_CHANNELS)
    centered = grouped - jnp.mean(grouped, (1, 2, 4), keepdims=True)
    variance = jnp.mean(jnp.square(centered), (1, 2, 4), keepdims=True)
    variance = jnp.repeat(variance[..., 0], GROUP_CHANNELS, axis=-1)
    return _normalize(params, centered.reshape(inputs.shape), variance).astype(inputs.dtype)


def _normalize(params, centered, variance):
    return centered * (params["scale"] * jax.lax.rsqrt(variance + EPSILON)) + params["bias"]


def global_average_pool(inputs: jax.Array) -> jax.Array:
    """Mean over the image plane of [B, H, W, C]: [B, C].

    Raises:
      ValueError: inputs of another rank.
    """
    if inputs.ndim != 4:
        raise ValueError(f"global_average_pool: expected inputs [B, H, W, C], got {inputs.shape}")
    return jnp.mean(inputs, axis=(1, 2))


def average_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Mean over windows of 2x2, stride 2; at an odd edge, over the pixels that are there.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C] for inputs [B, H, W, C].
    Raises:
      ValueError: inputs of another rank.
    """
    if inputs.ndim != 4:
        raise ValueError(f"average_pool_2x2: expected inputs [B, H, W, C], got {inputs.shape}")
    batch, height, width, channels = inputs.shape
    # The mean of a pixel and its copy is the pixel.
    edges = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    padded = jnp.pad(inputs, edges, mode="edge")
    shape = (batch, -(-height // 2), 2, -(-width // 2), 2, channels)
    return jnp.mean(padded.reshape(shape), axis=(2, 4))


def max_pool_3x3(inputs: jax.Array) -> jax.Array:
    """Maximum over windows of 3x3, stride 2, one pixel of padding that never is the maximum.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C] for inputs [B, H, W, C].
    Gradient: to the first maximum of each window.
    Raises:
      ValueError: inputs of another rank.
    """
    if inputs.ndim != 4:
        raise ValueError(f"max_pool_3x3: expected inputs [B, H, W, C], got {inputs.shape}")
    return jax.lax.reduce_window(
        inputs,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )


@jax.custom_jvp
def shake(inputs: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Multiplies each image by one factor, and derivatives by another.

    Args:
      inputs: [B, H, W, C].
      forward: [B], factor of the values.
      backward: [B], factor of the derivatives.
    Returns:
      [B, H, W, C], inputs * forward.
    Gradient: backward * tangent, in forward and reverse mode; none to the factors. A second
      derivative is the true derivative of that first one: the same in every nesting.
    Reference: Gastaldi 2017, arXiv:1705.07485; Yamada et al. 2018, arXiv:1802.02375.
    """
    del backward
    return inputs * _per_image(forward, inputs)


# A rule for forward mode, since JAX derives the reverse one from it and not the other way round.
@shake.defjvp
def _shake_jvp(primals, tangents):
    inputs, forward, backward = primals
    return inputs * _per_image(forward, inputs), tangents[0] * _per_image(backward, inputs)


def _per_image(factor, inputs):
    return factor.astype(inputs.dtype)[:, None, None, None]


def image_uniform(
    key: jax.Array, count: int, shape: tuple[int, ...], *, axis_name: str | None = None
) -> jax.Array:
    """Draws U(0, 1) for each image, image i of the whole batch from fold_in(key, i).

    Args:
      key: typed PRNG key, consumed; the same on all devices.
      count: number of images on this device, B.
      shape: numbers of one image.
      axis_name: mapped axis whose devices share one batch in equal parts, or None.
    Returns:
      float32 [B, *shape].
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def check_images(network: str, images: jax.Array) -> None:
    """Checks the input of a network: floating, [B, H, W, 3]. Messages start with `network`.

    Raises:
      TypeError: images are not floating.
      ValueError: images of another shape.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{network}: expected floating, normalised images, got dtype {images.dtype}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{network}: expected images [B, H, W, 3], got {images.shape}")


def check_sizes(network: str, **sizes: int) -> None:
    """Checks that sizes, by the names of settings, are integers of 1 or more; messages start with `network`.

    Raises:
      TypeError: a size is no integer.
      ValueError: a size is below 1.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{network}: expected an integer {name}, got {value!r}")
        if value < 1:
            raise ValueError(f"{network}: expected {name} >= 1, got {value}")
