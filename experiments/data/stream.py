"""Batches of images that threads decode, two batches ahead of the reader.

A batch is a pure function of the seed and its step, whatever the number of threads or processes: there is no
state to save, a run goes on at any step.
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data import host_images

_AHEAD = 2  # batches, besides the one that is read


def batches(
    images: host_images.Images,
    labels: np.ndarray,
    seed: int,
    indices: Callable[[int], tuple[int, np.ndarray]],
    steps: range,
    to_device: Callable[[tuple[np.ndarray, np.ndarray]], Any],
    threads: int | None = None,
    changes: Callable[[int, np.ndarray], Sequence[host_images.Change]] | None = None,
) -> Iterator[Any]:
    """Yields the batch of each step, as `to_device` makes it.

    Args:
      images, labels: the training images.
      seed: of random crops.
      indices: the epoch of a step and the images of its batch, int [B], or this process's part of them.
      steps: in this order.
      to_device: called in a thread with new arrays, images uint8 [B, H, W, 3] and labels int32 [B].
      threads: that decode. Default: one for each core.
      changes: of an epoch and images, int [B], what is done to each of them before it is cropped.

    Raises:
      ValueError: an image that cannot be read; with its name.
    """

    def decode(into, row, epoch, index, change):
        into[row] = images.sample(seed, epoch, index, change)

    def transfer(into, labels, decoded):
        for future in decoded:
            future.result()
        return to_device((into, labels))

    def submit(step):
        epoch, index = indices(step)
        into = np.empty((len(index), *images.shape[1:]), np.uint8)
        of_each = changes(epoch, index) if changes else [None] * len(index)
        decoded = [
            pool.submit(decode, into, row, epoch, one, change)
            for row, (one, change) in enumerate(zip(index.tolist(), of_each))
        ]
        ahead.append(sender.submit(transfer, into, labels[index], decoded))

    ahead = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count(), "decode")
    sender = concurrent.futures.ThreadPoolExecutor(1, "to_device")
    try:
        for step in steps:
            submit(step)
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # also where the reader closes the generator
        for executor in (pool, sender):
            executor.shutdown(cancel_futures=True)
