"""A training step of a wide residual network in plain PyTorch, for ours to be held against.

Imported only where PyTorch is installed. Layers, their initialisation, loss and update are those of
`models.wide_resnet` and of `policy_training.step`; bfloat16 is autocast, which keeps weights, statistics and
loss in float32 as well. Eager, in channels_last, with TF32 where JAX has it. The batch is noise that lies on
the device, and nothing augments it.
"""

from collections.abc import Callable

import jax
import torch
from torch import nn
from torch.nn import functional

from dada import models
from dada.models import wide_resnet
from dada.training import policy_training
from experiments.measure import benchmark_timing

_MOMENTUM = 0.9  # of a new batch in the statistics of batch norm, and of SGD


class Block(nn.Module):
    """BN, ReLU, convolution, BN, ReLU, convolution with the stride; the shortcut takes the raw input."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels, momentum=_MOMENTUM)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels, momentum=_MOMENTUM)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1)
        is_equal = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if is_equal else nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(functional.relu(self.norm1(inputs), inplace=True))
        hidden = self.conv2(functional.relu(self.norm2(hidden), inplace=True))
        return hidden + self.shortcut(inputs)


class WideResNet(nn.Module):
    """Logits [B, C] of images [B, 3, H, W]; the names of parameters are those of `models.wide_resnet`."""

    def __init__(self, config: wide_resnet.Config):
        super().__init__()
        channels = wide_resnet.STAGE_CHANNELS[0]
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.stages = nn.Sequential()
        for base_channels, stride in zip(wide_resnet.STAGE_CHANNELS, wide_resnet.STAGE_STRIDES):
            stage = nn.Sequential()
            for _ in range((config.depth - 4) // 6):
                stage.append(Block(channels, base_channels * config.width, stride))
                channels, stride = base_channels * config.width, 1
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels, momentum=_MOMENTUM)
        self.dense = nn.Linear(channels, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm(self.stages(self.stem(images))), inplace=True)
        return self.dense(hidden.mean((2, 3)))


def sgd(network: nn.Module) -> torch.optim.SGD:
    """The optimiser of `train_step`, with the settings that `policy_training.Config` has by default."""
    recipe = policy_training.Config
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=_MOMENTUM,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )


def train_step(
    network: nn.Module, optimizer: torch.optim.SGD, images: torch.Tensor, labels: torch.Tensor, dtype: str
) -> torch.Tensor:
    """One update; returns the loss before it."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = network(images)
    loss = functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), policy_training.Config.clip_norm)
    optimizer.step()
    return loss.detach()


def training_steps(
    model: str, dtype: str, num_classes: int, image_size: int, batch_size: int, seed: int
) -> Callable[[], None] | str:
    """`benchmark_timing.steps_at_once` training steps on one batch, which end when the device is done.

    A text where the network is no wide residual network, or PyTorch does not run on the device of JAX.
    """
    _, config = models.by_name(model, num_classes, image_size)
    if not isinstance(config, wide_resnet.Config):
        return "not run: another network than WRN"
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        return "not run: PyTorch finds no GPU"
    torch.backends.cuda.matmul.allow_tf32 = True  # convolutions have it by default
    torch.backends.cudnn.benchmark = True  # picks algorithms by trying them, as XLA does
    torch.manual_seed(seed)
    network = WideResNet(config).to(device, memory_format=torch.channels_last)
    optimizer = sgd(network)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (batch_size,), device=device)

    def steps():
        for _ in range(benchmark_timing.steps_at_once()):
            train_step(network, optimizer, images, labels, dtype)
        if device == "cuda":
            torch.cuda.synchronize()

    return steps
