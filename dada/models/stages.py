"""What residual networks have in common: stages of blocks, the first block of each with the stage's stride.

Contract: a network keeps the parameters and the statistics of its blocks as lists of stages, which are
lists of blocks. A block is what the network says; here is only the walk over them.

On accelerators equal blocks that follow each other are one scanned block, which is compiled once; on a CPU
they are written out, because XLA:CPU runs convolution gradients inside loops 35 to 100 times slower.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import layers

Stages = list[list[Any]]


def blocks_per_stage(network: str, config: Any, block_layers: int, other_layers: int) -> int:
    """The n of a Config of integers whose depth is block_layers n + other_layers.

    Raises:
      TypeError: a field is no integer; the message starts with `network`.
      ValueError: a field is below 1, or the depth has no such n of 1 or more.
    """
    layers.check_sizes(network, **dataclasses.asdict(config))
    blocks, rest = divmod(config.depth - other_layers, block_layers)
    if blocks < 1 or rest:
        form = f"{block_layers} n + {other_layers} with n >= 1"
        raise ValueError(f"{network}: expected depth {form}, got {config.depth}")
    return blocks


def init(
    stage_keys: Sequence[jax.Array],
    in_channels: int,
    stage_channels: Sequence[int],
    stage_blocks: Sequence[int],
    stage_strides: Sequence[int],
    init_block: Callable[[jax.Array, int, int, int], tuple[Any, Any]],
) -> tuple[Stages, Stages]:
    """Draws all blocks.

    Args:
      stage_keys: typed PRNG keys, one for each stage, consumed.
      in_channels: channels that enter the first block.
      stage_channels: channels at the end of each block of a stage.
      stage_blocks: number of blocks of each stage.
      stage_strides: stride of the first block of each stage.
      init_block: (key, in_channels, out_channels, stride) -> (params, batch_stats) of a block.
    Returns:
      (params, batch_stats) of all stages.
    """
    params, stats = [], []
    for key, channels, count, stride in zip(stage_keys, stage_channels, stage_blocks, stage_strides):
        blocks = []
        for block_key in jax.random.split(key, count):
            blocks.append(init_block(block_key, in_channels, channels, stride))
            in_channels, stride = channels, 1
        params.append([block_params for block_params, _ in blocks])
        stats.append([block_stats for _, block_stats in blocks])
    return params, stats


def apply(
    params: Stages,
    stats: Stages,
    hidden: jax.Array,
    stage_strides: Sequence[int],
    block: Callable[[Any, Any, jax.Array, int, int], tuple[jax.Array, Any]],
) -> tuple[list[jax.Array], Stages]:
    """Applies all blocks one after the other.

    Args:
      params: parameters of all stages.
      stats: running statistics of all stages.
      hidden: [B, H, W, C], input of the first block.
      stage_strides: stride of the first block of each stage.
      block: (params, stats, inputs, stride, index of the block in the network) -> (outputs, new stats); the
        index may be traced.
    Returns:
      ([output of each stage], new statistics of all stages).
    """
    outputs, new_stages, index = [], [], 0
    for stage_params, stage_stats, stride in zip(params, stats, stage_strides):
        blocks, new_stage = list(zip(stage_params, stage_stats)), []
        while blocks:
            count = _num_equal(blocks) if stride == 1 and _scans() else 1
            equal, blocks = blocks[:count], blocks[count:]
            if count > 1:
                hidden, new_stats = _scan(block, equal, hidden, index)
            else:
                hidden, *new_stats = block(*equal[0], hidden, stride, index)
            new_stage += new_stats
            stride, index = 1, index + count
        outputs.append(hidden)
        new_stages.append(new_stage)
    return outputs, new_stages


def _scans():
    return jax.default_backend() != "cpu"


def _num_equal(blocks):
    """Number of blocks with the shapes of the first one, at the start."""

    def shapes(block):
        leaves, structure = jax.tree.flatten(block)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    return len(list(itertools.takewhile(lambda block: shapes(block) == shapes(blocks[0]), blocks)))


def _scan(block, equal, hidden, index):
    """Applies blocks of stride 1, whose parameters and statistics have equal shapes: (outputs, new stats)."""

    def one(hidden, scanned):
        (params, stats), number = scanned
        return block(params, stats, hidden, 1, index + number)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *equal)
    hidden, new_stats = jax.lax.scan(one, hidden, (stacked, jnp.arange(len(equal))))
    return hidden, [jax.tree.map(lambda leaf: leaf[i], new_stats) for i in range(len(equal))]  # noqa: B023
