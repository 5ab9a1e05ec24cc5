"""What residual networks have in common: stages of blocks, the first block of each with the stage's stride.

Contract: a network keeps the parameters and the statistics of its blocks as lists of stages, which are
lists of blocks. A block is what the network says; here is only the walk over them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

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
      block: (params, stats, inputs, stride, index of the block in the network) -> (outputs, new stats).
    Returns:
      ([output of each stage], new statistics of all stages).
    """
    outputs, new_stages, index = [], [], 0
    for stage_params, stage_stats, stride in zip(params, stats, stage_strides):
        new_stage = []
        for block_params, block_stats in zip(stage_params, stage_stats):
            hidden, new_block_stats = block(block_params, block_stats, hidden, stride, index)
            new_stage.append(new_block_stats)
            stride, index = 1, index + 1
        outputs.append(hidden)
        new_stages.append(new_stage)
    return outputs, new_stages
