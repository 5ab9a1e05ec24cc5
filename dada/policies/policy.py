"""The policy artefact: one type for three kinds of policy, its validation and its JSON file.

Kinds (N sequences, K ops or layers, R rows of the search space, A actions, M candidates, E epochs):
    sub_policies  one of N sequences is drawn by weight (uniform without weights); each of its ops
                  is applied with its own probability at its own level     (DADA, AutoAugment, ...)
    layers        K categoricals over A actions (op, level), one action drawn per layer    (DeepAA)
    schedule      in epoch e, with probability p_tp[e], num_ops ops drawn independently from p_o[e]
                  over M candidates (op, level); otherwise nothing                           (DDAS)

In memory an op is a row of the search space and numbers are float64, so that a file that is read
and written again keeps its bytes.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from .. import ops

FORMAT_VERSION = 1
_SHIPPED = pathlib.Path(__file__).parent / "published"


class SubPolicies(NamedTuple):
    """Sequences of ops, padded at the end with row -1."""

    row: np.ndarray  # int32 [N, K], row of the search space, -1 = no op
    probability: np.ndarray  # float64 [N, K] in [0, 1]
    level: np.ndarray  # float64 [N, K] in [0, 1]
    weight: np.ndarray | None = None  # float64 [N] >= 0, any positive sum; None = uniform


class Layers(NamedTuple):
    """One categorical per layer over the same actions."""

    row: np.ndarray  # int32 [A]
    level: np.ndarray  # float64 [A] in [0, 1]
    probability: np.ndarray  # float64 [K, A], every layer sums to 1


class Schedule(NamedTuple):
    """A distribution over candidates for every epoch."""

    row: np.ndarray  # int32 [M]
    level: np.ndarray  # float64 [M] in [0, 1]
    p_tp: np.ndarray  # float64 [E] in [0, 1], probability that an image is augmented at all
    p_o: np.ndarray  # float64 [E, M], every epoch sums to 1
    num_ops: int = 2  # ops drawn for an augmented image


_CONTENT = {"sub_policies": SubPolicies, "layers": Layers, "schedule": Schedule}
_CONTENT_KEYS = {
    "sub_policies": ("weights", "sub_policies"),
    "layers": ("actions", "layers"),
    "schedule": ("num_ops", "candidates", "p_tp", "p_o"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A policy and where it comes from; compared and hashed by identity (it holds arrays)."""

    kind: str  # sub_policies, layers or schedule
    search_space: str  # a name of ops.SPACE_NAMES
    extra_ops: tuple[str, ...]  # ops without magnitude appended to the search space
    content: SubPolicies | Layers | Schedule
    method: str | None = None
    preset: str | None = None
    seed: int | None = None
    data_set: str | None = None  # what the policy was searched on
    selection_rule: str | None = None  # how the content was chosen from the search's result
    source: str | None = None
    licence: str | None = None
    excluded_ops: tuple[str, ...] = ()  # rows or ops left out of the search space


_TEXT_FIELDS = ("method", "preset", "data_set", "selection_rule", "source", "licence")
# What a policy says of itself, and does not do.
METADATA = tuple(field.name for field in dataclasses.fields(Policy)[4:-1])
_OPTIONAL = "excluded_ops"  # in a file only where there are some: files without them keep their bytes
_HEADER = ("kind", "search_space", "extra_ops", _OPTIONAL, *METADATA)


def space(policy: Policy) -> ops.SearchSpace:
    """Returns the search space that the rows of the policy index."""
    return ops.search_space(policy.search_space, policy.extra_ops, policy.excluded_ops)


def _require(condition, path, got, expected):
    if not condition:
        raise ValueError(f"{path}: got {got}, expected {expected}")


def _check_numbers(values, path, high=1.0):
    """Every number in [0, high]; `path` is a format string that takes the index of an element."""
    for index in np.argwhere(~((values >= 0) & (values <= high) & np.isfinite(values)))[:1]:
        expected = f"a number in [0, {high:g}]" if high < np.inf else "a finite number >= 0"
        _require(False, path.format(*index), repr(float(values[tuple(index)])), expected)


def _check_rows(row, path, low, num_rows):
    for index in np.argwhere((row < low) | (row >= num_rows))[:1]:
        got = f"row {row[tuple(index)]}"
        _require(False, path.format(*index), got, f"{low}..{num_rows - 1}")


def _check_distributions(values, path, shape):
    _require(values.shape == shape and shape[0], path, f"shape {values.shape}", f"{shape}, not 0")
    _check_numbers(values, path + "[{}][{}]")
    for index, total in enumerate(values.sum(axis=1)):
        _require(abs(total - 1) < 1e-4, f"{path}[{index}]", f"the sum {total:.6g}", "the sum 1")


def _check_sub_policies(content, num_rows):
    row, probability, level, weight = content
    path = "sub_policies"
    _require(row.ndim == 2 and row.size, path, f"shape {row.shape}", "[N, K], N and K > 0")
    _check_rows(row, path + "[{}][{}].op", -1, num_rows)
    padding_inside = np.any((row[:, 1:] >= 0) & (row[:, :-1] < 0))
    _require(not padding_inside, path, "padding before an op", "padding (row -1) at the end only")
    for name, array in (("probability", probability), ("level", level)):
        _require(array.shape == row.shape, f"{path} {name}", f"shape {array.shape}", row.shape)
        _check_numbers(array, path + "[{}][{}]." + name)
    if weight is not None:
        _require(weight.shape == row.shape[:1], "weights", f"shape {weight.shape}", row.shape[:1])
        _check_numbers(weight, "weights[{}]", high=np.inf)
        total = weight.sum()
        _require(0 < total < np.inf, "weights", f"the sum {total}", "a finite sum > 0")


def _check_actions(content, path, num_rows):
    row, level = content.row, content.level
    _require(row.ndim == 1 and row.size, path, f"shape {row.shape}", "a non-empty list")
    _require(level.shape == row.shape, f"{path} level", f"shape {level.shape}", row.shape)
    _check_rows(row, path + "[{}].op", 0, num_rows)
    _check_numbers(level, path + "[{}].level")


def validate(policy: Policy) -> None:
    """Checks a whole policy.

    Raises:
      TypeError: the content is not made of numpy arrays of integers (rows) and floats.
      ValueError: names the first bad field, as in sub_policies[3][1].level, and what was expected.
    """
    kind, content = policy.kind, policy.content
    _require(kind in _CONTENT, "kind", repr(kind), f"one of {', '.join(_CONTENT)}")
    expected = f"{_CONTENT[kind].__name__} for kind {kind!r}"
    _require(isinstance(content, _CONTENT[kind]), "content", type(content).__name__, expected)
    for name in _TEXT_FIELDS:
        value = getattr(policy, name)
        _require(value is None or isinstance(value, str), name, repr(value), "a string or null")
    seed = policy.seed
    _require(seed is None or type(seed) is int, "seed", repr(seed), "an integer or null")
    for name, value in content._asdict().items():
        number, kinds = ("integers", "iu") if name == "row" else ("floats", "f")
        is_array = isinstance(value, np.ndarray) and value.dtype.kind in kinds
        if not is_array and name != "num_ops" and not (name == "weight" and value is None):
            got = f"{type(value).__name__} {getattr(value, 'dtype', '')}"
            raise TypeError(f"{kind} {name}: got {got}, expected a numpy array of {number}")
    num_rows = len(space(policy).rows)
    if kind == "sub_policies":
        _check_sub_policies(content, num_rows)
    elif kind == "layers":
        _check_actions(content, "actions", num_rows)
        shape = (len(content.probability), content.row.size)
        _check_distributions(content.probability, "layers", shape)
    else:
        _check_actions(content, "candidates", num_rows)
        num_ops, p_tp = content.num_ops, content.p_tp
        _require(type(num_ops) is int and num_ops > 0, "num_ops", repr(num_ops), "an integer > 0")
        _require(p_tp.ndim == 1, "p_tp", f"shape {p_tp.shape}", "one number per epoch")
        _check_numbers(p_tp, "p_tp[{}]")
        _check_distributions(content.p_o, "p_o", (p_tp.size, content.row.size))


def _list(value, path, length=None):
    _require(isinstance(value, list | tuple), path, repr(value), "a list")
    _require(length in (None, len(value)), path, f"length {len(value)}", f"length {length}")
    return value


def _number(value, path):
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    _require(is_number, path, repr(value), "a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{path}: got an integer of {len(str(value))} digits") from None


def _vector(value, path, length=None):
    items = _list(value, path, length)
    return np.array([_number(x, f"{path}[{i}]") for i, x in enumerate(items)], np.float64)


def _matrix(value, path, width):
    rows = [_vector(x, f"{path}[{i}]", width) for i, x in enumerate(_list(value, path))]
    return np.array(rows, np.float64).reshape(len(rows), width)


def _row(names, op, path):
    _require(op in names, path, repr(op), f"one of {', '.join(names)}")
    return names.index(op)


def _actions(names, value, path):
    entries = [_list(x, f"{path}[{i}]", 2) for i, x in enumerate(_list(value, path))]
    row = [_row(names, op, f"{path}[{i}].op") for i, (op, _) in enumerate(entries)]
    level = [_number(x, f"{path}[{i}].level") for i, (_, x) in enumerate(entries)]
    return np.array(row, np.int32), np.array(level, np.float64)


def from_sequences(
    search_space: str,
    sequences,
    *,
    extra_ops: tuple[str, ...] = (),
    excluded_ops: tuple[str, ...] = (),
    weights=None,
    **metadata,
) -> Policy:
    """Builds a policy of kind sub_policies from sequences of (op name, probability, level).

    Args:
      search_space: name of the search space.
      sequences: N sequences, of any lengths, zero included.
      extra_ops, excluded_ops: of the search space.
      weights: N numbers >= 0, or None for uniform.
      **metadata: the fields of Policy from `method` to `licence`.
    Raises:
      ValueError: names the field, as in sub_policies[3][1].level, and what was expected.
    """
    options = {"extra_ops": tuple(extra_ops), "excluded_ops": tuple(excluded_ops)}
    names = [row.name for row in ops.search_space(search_space, **options).rows]
    sequences = _list(sequences, "sub_policies")
    width = max([len(_list(s, f"sub_policies[{n}]")) for n, s in enumerate(sequences)] + [1])
    row = np.full((len(sequences), width), -1, np.int32)
    probability, level = np.zeros(row.shape), np.zeros(row.shape)
    for n, sequence in enumerate(sequences):
        for k, entry in enumerate(sequence):
            path = f"sub_policies[{n}][{k}]"
            op, entry_probability, entry_level = _list(entry, path, 3)
            row[n, k] = _row(names, op, path + ".op")
            probability[n, k] = _number(entry_probability, path + ".probability")
            level[n, k] = _number(entry_level, path + ".level")
    weight = None if weights is None else _vector(weights, "weights", len(sequences))
    content = SubPolicies(row, probability, level, weight)
    policy = Policy("sub_policies", search_space, content=content, **options, **metadata)
    validate(policy)
    return policy


def identity() -> Policy:
    """Returns the policy that applies nothing: one empty sub-policy."""
    return from_sequences("strength", [[]], method="identity")


def random_policy(
    seed: int, search_space: str = "dada", *, num_ops: int = 2, num_sub_policies: int | None = None, **options
) -> Policy:
    """Returns the random baseline of the official DADA code, or the same with sub-policies of other length.

    Legacy numpy generator: the first pairs of a permutation of all unordered pairs of distinct ops
    (lexicographic), then per pair four uniforms (probability 1, level 1, probability 2, level 2). With K ops
    in place of 2: sets of K, and 2 K uniforms for each.

    Args:
      seed: of the generator, in [0, 2**32).
      search_space: name of the search space.
      num_ops: K, ops of a sub-policy.
      num_sub_policies: None for 25, or for all sets of a space with fewer.
      **options: extra_ops and excluded_ops of the search space.

    Raises:
      ValueError: more sub-policies than sets, or a space of fewer than K ops.
    """
    names = [row.name for row in ops.search_space(search_space, **options).rows]
    sets = list(itertools.combinations(names, num_ops))
    num_sub_policies = min(25, len(sets)) if num_sub_policies is None else num_sub_policies
    possible = 0 < num_sub_policies <= len(sets)
    _require(possible, "num_sub_policies", num_sub_policies, f"1..{len(sets)}")
    generator = np.random.RandomState(seed)
    chosen = generator.permutation(len(sets))[:num_sub_policies]
    numbers = generator.uniform(size=(num_sub_policies, num_ops, 2))
    sequences = [[(op, *numbers[n, k]) for k, op in enumerate(sets[one])] for n, one in enumerate(chosen)]
    return from_sequences(search_space, sequences, method="random", seed=seed, **options)


def _decode(data):
    _require(isinstance(data, dict), "content", type(data).__name__, "a JSON object")
    version, kind = data.get("format_version"), data.get("kind")
    same = type(version) is int and version == FORMAT_VERSION
    _require(same, "format_version", repr(version), FORMAT_VERSION)
    _require(kind in list(_CONTENT), "kind", repr(kind), f"one of {', '.join(_CONTENT)}")
    expected = ("format_version", *_HEADER, *_CONTENT_KEYS[kind])
    for key in data:
        _require(key in expected, repr(key), "an unknown key", f"one of {', '.join(expected)}")
    for key in expected:
        _require(key in data or key == _OPTIONAL, key, "no such key", "a value, null where there is none")
    name = data["search_space"]
    options = {path: tuple(_list(data.get(path, ()), path)) for path in ("extra_ops", "excluded_ops")}
    texts = ((op, path) for path, names in options.items() for op in names)
    for value, path in ((name, "search_space"), *texts):
        _require(isinstance(value, str), path, repr(value), "a string")
    metadata = {key: data[key] for key in METADATA} | options
    if kind == "sub_policies":
        return from_sequences(name, data["sub_policies"], weights=data["weights"], **metadata)
    names = [row.name for row in ops.search_space(name, **options).rows]
    if kind == "layers":
        row, level = _actions(names, data["actions"], "actions")
        content = Layers(row, level, _matrix(data["layers"], "layers", len(row)))
    else:
        row, level = _actions(names, data["candidates"], "candidates")
        p_tp, p_o = _vector(data["p_tp"], "p_tp"), _matrix(data["p_o"], "p_o", len(row))
        content = Schedule(row, level, p_tp, p_o, data["num_ops"])
    policy = Policy(kind, name, content=content, **metadata)
    validate(policy)
    return policy


def _no_repeated_keys(pairs):
    keys = [key for key, _ in pairs]
    for key in keys:
        _require(keys.count(key) == 1, repr(key), f"the key {keys.count(key)} times", "once")
    return dict(pairs)


def _no_constants(text):
    raise ValueError(f"got {text}, expected finite numbers")


def load(path_or_name) -> Policy:
    """Reads and validates a policy file.

    Args:
      path_or_name: path of a JSON file, or the bare name of a shipped policy ("dada_cifar10").
    Raises:
      ValueError: names the file, the field (as in sub_policies[3][1].level) and what was expected.
    """
    text = os.fspath(path_or_name)
    path = pathlib.Path(text)
    shipped = {file.stem: file for file in sorted(_SHIPPED.glob("*.json"))}
    if text in shipped:
        path = shipped[text]
    _require(path.is_file(), "policy", repr(text), f"a file or one of {', '.join(shipped)}")
    hooks = {"object_pairs_hook": _no_repeated_keys, "parse_constant": _no_constants}
    try:
        return _decode(json.loads(path.read_text(encoding="utf-8"), **hooks))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def to_json(policy: Policy) -> str:
    """Returns the text of the policy file: fixed key order, exact floats, one entry per line."""
    validate(policy)
    names, content = [row.name for row in space(policy).rows], policy.content
    fields = {"format_version": FORMAT_VERSION} | {key: getattr(policy, key) for key in _HEADER}
    if not policy.excluded_ops:
        del fields[_OPTIONAL]
    if policy.kind == "sub_policies":
        fields["weights"] = None if content.weight is None else content.weight.tolist()
        fields["sub_policies"] = [
            [[names[row], p, level] for row, p, level in zip(*entries) if row >= 0]
            for entries in zip(*(array.tolist() for array in content[:3]))
        ]
    else:
        actions = [[names[row], x] for row, x in zip(content.row.tolist(), content.level.tolist())]
        if policy.kind == "layers":
            fields |= {"actions": actions, "layers": content.probability.tolist()}
        else:
            fields |= {"num_ops": content.num_ops, "candidates": actions}
            fields |= {"p_tp": content.p_tp.tolist(), "p_o": content.p_o.tolist()}
    blocks = []
    for key, value in fields.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if isinstance(value, list) and value and isinstance(value[0], list):
            lines = [json.dumps(entry, allow_nan=False) for entry in value]
            text = "[\n  " + ",\n  ".join(lines) + "\n ]"
        blocks.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def save(path, policy: Policy) -> None:
    """Validates a policy and writes its file in one step: the old or the new file, never a part."""
    text = to_json(policy)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
