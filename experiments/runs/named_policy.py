"""The policies that --policy can name: shipped files, files of a search, and those without a search."""

from dada import policies
from dada.policies import baselines

FORMS = (
    "none, random:SEED, randaugment:N,M, trivialaugment_ra, trivialaugment_wide, uniformaugment, "
    "a shipped policy (dada_cifar10) or the path of a policy.json"
)


def load(name: str) -> policies.Policy:
    """Returns a policy by name, one of `FORMS`; random:SEED is the random baseline of the DADA code.

    Raises:
      ValueError: no policy has that name, a number is out of range, or the file is not a policy.
    """
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
        return policies.random_policy(*_integers(name, numbers, 1), "dada")
    if kind == "randaugment":
        return baselines.randaugment(*_integers(name, numbers, 2))
    try:
        return policies.load(name)
    except ValueError as error:
        raise ValueError(f"--policy: {error}; the forms are {FORMS}") from error


def _integers(name, text, count):
    parts = text.split(",")
    if len(parts) != count or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--policy: got {name!r}, expected one of {FORMS}")
    return [int(part) for part in parts]
