"""The policies that --policy can name: shipped files, files of a search, and those without a search."""

import re

from dada import ops, policies
from dada.policies import baselines

FORMS = (
    "none, random:SEED, randaugment:N,M, randaugment_imagenet:N,M, trivialaugment_ra, trivialaugment_wide, "
    "uniformaugment, a shipped policy (dada_cifar10) or the path of a policy.json"
)

_MAX_OPS = 100


def load(
    name: str, image_size: tuple[int, int], flag: str = "policy", *, has_boxes: bool = False
) -> policies.Policy:
    """Returns a policy by name, one of `FORMS`; random:SEED is the random baseline of the DADA code.

    Args:
      name: as it was given.
      image_size: height and width of the images that it is for.
      has_boxes: whether these have boxes.
      flag: for messages, the flag that it was given with.

    Raises:
      ValueError: no policy has that name, a number is out of range, the file is not a policy, or has an op
        that cannot be applied to such images.
    """
    policy = _read(name, flag)
    check_ops(policies.space(policy), image_size, has_boxes, f"--{flag}={name}")
    return policy


def split(text: str) -> list[str]:
    """The names in a list with commas between; digits alone belong to the name before: randaugment:2,9."""
    return re.split(r",(?!\d+(?:,|$))", text)


def check_ops(space: ops.SearchSpace, image_size: tuple[int, int], has_boxes: bool, where: str) -> None:
    """Raises ValueError where a space has an op that cannot be applied to such images."""
    names = [row.op for row in space.rows]
    turn = next((name for name in names if name.startswith("Rotate90")), None)
    if turn and image_size[0] != image_size[1]:
        raise ValueError(f"{where}: {turn} needs square images, got {image_size[0]} x {image_size[1]}")
    needs_boxes = next((name for name in names if name in ops.BOX_OPS), None)
    if needs_boxes and not has_boxes:
        raise ValueError(f"{where}: {needs_boxes} needs images with boxes, got images with labels")


def _read(name, flag):
    kind, _, numbers = name.partition(":")
    if name in ("none", "identity"):
        return policies.identity()
    if name == "trivialaugment_ra":
        return baselines.trivialaugment("randaugment")
    if name == "trivialaugment_wide":
        return baselines.trivialaugment(name)
    if name == "uniformaugment":
        return baselines.uniformaugment()
    if kind == "random":
        return policies.random_policy(*_integers(name, flag, numbers, 1), "dada")
    if kind in ("randaugment", "randaugment_imagenet"):
        num_ops, magnitude = _integers(name, flag, numbers, 2)
        if num_ops > _MAX_OPS:
            raise ValueError(f"--{flag}: got {name!r}, expected {_MAX_OPS} ops or fewer")
        return baselines.randaugment(num_ops, magnitude, kind)
    try:
        return policies.load(name)
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}; the forms are {FORMS}") from error


def _integers(name, flag, text, count):
    parts = text.split(",")
    if len(parts) != count or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--{flag}: got {name!r}, expected one of {FORMS}")
    return [int(part) for part in parts]
