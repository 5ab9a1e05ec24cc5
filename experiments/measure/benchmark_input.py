"""Images per second that threads of the host decode and crop, and how long training steps wait for them."""

import functools
import io
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from dada import models, policies
from dada.training import policy_training, sgd
from experiments.data import host_crops, host_images, stream
from experiments.measure import benchmark_timing
from experiments.runs import streamed_loop, train_run

THREADS = (1, 2)
MODEL = "wrn_16_2"
_SIZES = (500, 375), 224  # of most photos of ImageNet, and of a crop
_NUM_FILES, _BATCH = 16, 32
_IMAGES = 128  # of a call
_ROUNDS = 5
_STEP_SIZE, _STEPS = 64, 20


class Photos:
    """A source (`sources.Source`) of JPEG files of about 70 KB in memory."""

    def __init__(self, seed: int, count: int):
        generator = np.random.default_rng(seed)
        self.labels = np.arange(count, dtype=np.int32) % 2
        self.classes, self.digest = ("first", "second"), ""
        self._files = [_jpeg(generator) for _ in range(min(count, _NUM_FILES))]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self._files[index % len(self._files)]

    def name(self, index: int) -> str:
        return f"photo {index}"


def _jpeg(generator):
    """Large shapes and some noise."""
    shapes = Image.fromarray(generator.integers(0, 256, (24, 32, 3)).astype(np.uint8))
    pixels = np.asarray(shapes.resize(_SIZES[0], Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(pixels + generator.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def contenders(seed: int, count: int = _IMAGES) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to decode and crop `count` photos to uint8 [count, 224, 224, 3]: Pillow alone, and threads."""
    photos, size = Photos(seed, count), _SIZES[1]
    images = host_images.Images(photos, host_images.Preparation(size, crop="random_resized"))

    def pillow():
        crops = []
        for index in range(count):
            with Image.open(io.BytesIO(photos.read(index))) as opened:
                image = opened.convert("RGB")
            uniform = np.random.default_rng([seed, 0, index]).random(host_crops.NUM_UNIFORM)
            left, top, width, height = host_crops.random_resized_box(uniform, *image.size)
            crop = image.crop((left, top, left + width, top + height))
            crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
        return np.stack(crops)

    def threaded(threads):
        parts = np.array_split(np.arange(count), -(-count // _BATCH))
        steps = range(len(parts))
        batches = stream.batches(
            images, photos.labels, seed, lambda step: (0, parts[step]), steps, lambda batch: batch, threads
        )
        return np.concatenate([batch for batch, _ in batches])

    return {"pillow": pillow, **{str(n): functools.partial(threaded, n) for n in THREADS}}


def share_waited(seed: int) -> float:
    """Share of their time that training steps of MODEL on crops of 64 x 64 wait, after the first one."""
    photos = Photos(seed, _BATCH * (_STEPS + 1))
    images = host_images.Images(photos, host_images.Preparation(_STEP_SIZE, crop="random_resized"))
    network, model_config = models.by_name(MODEL, 2, _STEP_SIZE)
    config = policy_training.Config(network.apply, policies.identity(), _STEPS, crop_padding=0)
    model_key, step_key, order_key = jax.random.split(jax.random.key(seed), 3)
    state = sgd.init(*jax.jit(network.init, static_argnums=1)(model_key, model_config))
    loop = streamed_loop.StreamedLoop(functools.partial(train_run.streamed_step, config), None)
    with streamed_loop.open_batches(
        images,
        photos.labels,
        seed=seed,
        order_key=order_key,
        steps=range(_STEPS + 1),
        size=_BATCH,
        steps_per_pass=_STEPS + 1,
        mesh=None,
        threads=None,
    ) as batches:
        ((state, _, _),) = loop.run(state, step_key, ((), batches), 1)
        start, waited = time.perf_counter(), loop.seconds_waited
        for after, _, _ in loop.run(state, step_key, ((), batches), _STEPS):
            state = after
        return (loop.seconds_waited - waited) / (time.perf_counter() - start)


def run(seed: int) -> dict[str, Any]:
    """Images per second by contender, how many times as many as Pillow's, and `share_waited`."""
    seconds = benchmark_timing.alternating(contenders(seed), rounds=_ROUNDS, label="input")
    return {
        "images_per_second": {name: _IMAGES / of_call for name, of_call in seconds.items()},
        "ratio_to_pillow": {str(n): seconds["pillow"] / seconds[str(n)] for n in THREADS},
        "model": MODEL,
        "share_waited": share_waited(seed),
    }
