"""Weights of residual networks under torchvision's names, from a .safetensors or an .npz file.

Read with NumPy, so that no file can run code. Of these names, `num_batches_tracked` is left out:

    conv1, bn1                                     stem, norm
    layer{1..4}.{n}.conv{1..3}, .bn{1..3}          stages[0..3][n], conv{1..3}, norm{1..3}
    layer{1..4}.{n}.downsample.{0, 1}              shortcut, shortcut_norm
    fc                                             dense

A file without fc.weight and fc.bias leaves the head as it was drawn: for other classes than the file's. A
detector takes all but the head for its backbone.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dada.models import resnet, retinanet

_NAMES = {
    **{"stem": "conv1", "norm": "bn1", "dense": "fc"},
    **{"norm1": "bn1", "norm2": "bn2", "norm3": "bn3"},
    **{"shortcut": "downsample.0", "shortcut_norm": "downsample.1"},
    **{"scale": "weight", "mean": "running_mean", "variance": "running_var"},
}
# The axes of PyTorch's arrays in ours: convolutions are OIHW there and HWIO here, linear layers transposed.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64}
_HEAD = ("fc.weight", "fc.bias")
_CONVERSION = (
    'With PyTorch: state = torch.load("a.pth", map_location="cpu", weights_only=True); '
    'numpy.savez("a.npz", **{name: array.numpy() for name, array in state.items()})'
)


def load(
    path: str | None, model: tuple[Any, Any], *, needs_head: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what takes the place of the parameters and running statistics that `init` draws.

    Args:
      path: of the file; None for no weights.
      model: from `tasks.network`.
      needs_head: refuse a file without one.
    Returns:
      (params, batch_stats) in float32, without "dense" if the file has no head.
    Raises:
      FileNotFoundError: no such file.
      ValueError: another network than a ResNet, or a file that is damaged, of another kind, or does not have
        the names and shapes of this network.
    """
    if path is None:
        return {}, {}
    _, config = model
    if not isinstance(config, (resnet.Config, retinanet.Config)):
        raise ValueError("--pretrained: expected --model=resnet_..., which torchvision has names for")
    arrays = {name: a for name, a in _read(pathlib.Path(path)).items() if "num_batches_tracked" not in name}
    if isinstance(config, retinanet.Config):
        of_backbone = resnet.Config(config.depth, width=config.width, norm=config.norm)
        arrays = {name: array for name, array in arrays.items() if name not in _HEAD}
        params, batch_stats = _arranged(path, of_backbone, arrays, needs_head=False)
        return {"backbone": params}, batch_stats
    return _arranged(path, config, arrays, needs_head)


def _arranged(path, config, arrays, needs_head):
    """(params, batch_stats) of a ResNet from the arrays of a file."""
    shapes = jax.eval_shape(lambda: resnet.init(jax.random.key(0), config))
    if not needs_head and not set(_HEAD) & set(arrays):
        del shapes[0]["dense"]
    leaves, tree = jax.tree.flatten_with_path(shapes)
    names = [_name(place) for place, _ in leaves]
    for problem, found in (("misses", set(names) - set(arrays)), ("also has", set(arrays) - set(names))):
        if found:
            listed = ", ".join(sorted(found)[:3])
            raise ValueError(f"{path}: {problem} {len(found)} arrays, {listed}; is it for another --model?")
    return jax.tree.unflatten(tree, [_array(path, n, arrays[n], leaf) for n, (_, leaf) in zip(names, leaves)])


def _name(place):
    """The name in PyTorch of a leaf of (params, batch_stats)."""
    parts = jax.tree_util.keystr(place[1:], simple=True, separator="/").split("/")
    if parts[0] == "stages":
        parts[:2] = [f"layer{int(parts[1]) + 1}"]
    return ".".join(_NAMES.get(part, part) for part in parts)


def _array(path, name, array, leaf):
    """An array of the file as the leaf that it is for."""
    axes = _AXES[leaf.ndim]
    expected = [leaf.shape[axis] for axis in axes]
    if list(array.shape) != expected or not jnp.issubdtype(array.dtype, jnp.floating):
        hint = "is it for another --model, or larger images?"
        if name in _HEAD:
            hint = "for other classes leave fc.weight and fc.bias out of the file"
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{path}: {name}: got {got}, expected real numbers {expected}; {hint}")
    return jnp.asarray(array.astype(np.float32).transpose(np.argsort(axes)))


def _read(path):
    """The arrays of a file by name."""
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"--pretrained={path}: expected a .safetensors or .npz file. {_CONVERSION}")
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    # NumPy raises many types for files that are damaged.
    except Exception as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file: {error}") from error


def _read_safetensors(path):
    """Eight bytes with the length of a JSON header, the header, and behind it the numbers."""
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            numbers = content[start + first : start + last].view(_DTYPES[entry["dtype"]])
            arrays[name] = numbers.reshape(entry["shape"])
    return arrays
