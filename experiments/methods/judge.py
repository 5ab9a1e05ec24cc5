"""Whether the policy that a search found is worth using: short trainings that end in a recommendation.

    none    no augmentation at all
    base    crop, flip, colour jitter, lighting and cutout of the flags; left out if the flags have none
    found   base and the policy that was found
    random  base and a random policy of the same search space, for comparison only
    NAME    base and another policy, one row each

Of a method whose policies stand alone (`Method.stands_alone`), found, random and NAME have no base.

All rows train the network of the search on its training images, with one recipe, for the same number of steps
and with the same seeds, and are tested on one stratified half of the validation images. The last third of the
search, or of each layer of DeepAA, draws its validation images from the other half; before that it sees all.

    RUN/judge/ROW/summary.json   of what the row is made: its policy and seeds; once it is finished, which
                                 images it had right, and which seeds diverged. It is trained again only if
                                 it is made of other things, as when a run of several seeds has grown.
    RUN/recommended.json         the policy that is recommended; it applies nothing for none and base
    RUN/summary.json             gets "verdict", see `decide`
"""

import functools
import pathlib
import shlex
import shutil
import statistics
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada import policies
from dada.training import policy_training, sgd
from experiments.data import datasets
from experiments.methods.method import Settings, Task
from experiments.runs import contents, devices, named_policy, run_folder, train_run, welch

ROWS = ("none", "base", "found", "random")
_COLORS = {"color_jitter": 0.0, "lighting": 0.0}
_NO_BASE = {"crop_padding": 0, "flip": False, "cutout_length": 0, **_COLORS}
_NUM_SEEDS = 3
_LARGEST_P = 0.05
_BATCH_SIZE, _TEST_BATCH = 32, 500
# That of the small tables in experiments/results; the search's own SGD is chosen for the search.
_TRAINING = {"learning_rate": 0.05, "weight_decay": 5e-4, "clip_norm": 5.0}
# Weight of a batch in the running statistics; more makes every test depend on the last few batches.
_BATCH_NORM_MOMENTUM = 0.1


class Plan(NamedTuple):
    """What the flags say of the judge."""

    kept: np.ndarray  # places of the validation images that the last third of the search sees
    held_out: np.ndarray  # places of the others
    num_epochs: int
    base: dict[str, Any]  # fields of policy_training.Config: base augmentation
    also: dict[str, policies.Policy]  # other policies to judge, by name


def plan(settings: Settings, mesh: jax.sharding.Mesh | None, train: sgd.Batch, valid: sgd.Batch) -> Plan:
    """Reads resolved flags; `train` and `valid` are the images of the search, `mesh` as in `Task`.

    Raises:
      ValueError: too few images, or a policy that cannot be judged.
    """
    least = _batch_size(mesh)
    if len(train.labels) < least:
        raise ValueError(f"--judge trains on {len(train.labels)} images, expected {least} or more")
    labels = np.asarray(valid.labels)
    try:
        kept, held_out = datasets.stratified_split(labels, len(labels) // 2)
    except ValueError as error:
        raise ValueError(f"--judge tests on half of the validation images: {error}") from error
    names = settings["judge_also"]
    for name in names:
        if name in ROWS or names.count(name) > 1:
            raise ValueError(f"--judge_also: got {name!r}, expected each once and none of {', '.join(ROWS)}")
    return Plan(
        kept=kept,
        held_out=held_out,
        num_epochs=settings["judge_epochs"],
        base={name: settings[name] for name in _NO_BASE},
        also={name: named_policy.load(name, valid.images.shape[1:3], "judge_also") for name in names},
    )


def run(task: Task, folder: run_folder.RunFolder, seed: int, found: policies.Policy) -> dict[str, Any] | None:
    """Trains and tests all rows, and writes the verdict into a folder, which has a summary.json.

    Args:
      task: of the search, with a Plan.
      folder: gets the files above.
      seed: of the search; it says with which seeds is trained, and which policy is the random one.
      found: the policy to judge.

    Returns:
      the verdict, see `decide`; None in other processes than the first one.
    """
    options = {"extra_ops": found.extra_ops, "excluded_ops": found.excluded_ops}
    num_ops = found.content.row.shape[1] if found.kind == "sub_policies" else 2
    rows = {
        "none": policies.identity(),
        "base": policies.identity(),
        "found": found,
        "random": policies.random_policy(seed, found.search_space, num_ops=num_ops, **options),
        **task.judge.also,
    }
    if task.judge.base == _NO_BASE:
        del rows["base"]
    valid = devices.local(task.data.valid, task.mesh)
    test = sgd.Batch(*(jnp.asarray(np.asarray(part)[task.judge.held_out]) for part in valid))
    is_right = jax.jit(functools.partial(_is_right, _config(task, "none", rows["none"])))
    right, num_diverged = {}, {}
    seeds = range(_NUM_SEEDS * seed, _NUM_SEEDS * (seed + 1))
    for name, policy in rows.items():
        path = folder.path / "judge" / urllib.parse.quote(name, safe="")
        made_of = {"policy": contents.of_policies([policy]), "seeds": list(seeds)}
        summary = _begun(path, made_of)
        if "right" not in summary:
            summary |= _train(task, path, name, policy, seeds, test, is_right)
            _finish(path, summary)
        right[name] = np.array([list(map(int, row)) for row in summary["right"]])
        num_diverged[name] = len(summary["diverged"])
    if not devices.is_primary():
        return None
    verdict = decide(right, num_diverged)
    policies.save(folder.path / "recommended.json", rows[verdict["recommended"]])
    folder.write_summary({**run_folder.read_summary(folder.path), "verdict": verdict})
    return verdict


def _batch_size(mesh):
    """The smallest from _BATCH_SIZE on that the devices share equally."""
    count = 1 if mesh is None else mesh.size
    return -(-_BATCH_SIZE // count) * count


def _begun(path, made_of):
    """The summary of a row made of this, finished or begun; one that is made of other things is deleted."""
    summary = run_folder.read_summary(path) if (path / "summary.json").is_file() else {}
    devices.barrier(f"{path}: read")  # by all processes, before the first one changes it
    if summary.get("made_of") != made_of:
        summary = {"made_of": made_of}
        if devices.is_primary():
            if path.is_dir():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            run_folder.RunFolder(path).write_summary(summary)
    devices.barrier(f"{path}: begun")
    return summary


def _finish(path, summary):
    """Keeps of a row its summary only."""
    devices.barrier(f"{path}: tested")
    if devices.is_primary():
        run_folder.RunFolder(path).write_summary(summary)
        for one in path.glob("seed_*"):
            shutil.rmtree(one)


def _base(task, name):
    """The base augmentation of a row."""
    has_none = name == "none" or (task.method.stands_alone and name != "base")
    return _NO_BASE if has_none else task.judge.base


def _config(task, name, policy):
    count = len(task.data.train.labels)
    return policy_training.Config(
        apply=functools.partial(task.model[0].apply, batch_norm_momentum=_BATCH_NORM_MOMENTUM),
        policy=policy,
        steps_per_epoch=count // _batch_size(task.mesh),
        num_epochs=task.judge.num_epochs,
        policy_position=task.method.policy_position,
        mean=task.config.mean,
        std=task.config.std,
        **_TRAINING,
        **_base(task, name),
    )


def _train(task, path, name, policy, seeds, test, is_right):
    """Trains a row with all seeds, or goes on with it; which test images these have right, which diverged."""
    config = _config(task, name, policy)
    flags = {"policy": name, "epochs": config.num_epochs, "batch_size": _batch_size(task.mesh)}
    folders = {}
    for one in seeds:
        place = path / f"seed_{one}"
        resume = (place / "flags.txt").exists()
        folders[one] = run_folder.create(place, {**flags, "seed": one}, resume=resume)
    training = train_run.Task(
        config=config,
        model=task.model,
        data=train_run.Data(*task.data.train, *devices.replicate(test, task.mesh)),
        batch_size=flags["batch_size"],
        eval_batch_size=_TEST_BATCH,
        recipe=flags,
        mesh=task.mesh,
        label=f"judge {name}",
        pretrained=task.pretrained,
        decode_threads=task.decode_threads,
        ends_at_nan=False,
    )
    list(train_run.run(training, folders))
    network, network_config = task.model
    shapes = jax.eval_shape(lambda: sgd.init(*network.init(jax.random.key(0), network_config)))
    right, diverged = [], []
    for one, place in folders.items():
        row = np.asarray(is_right(place.restore(shapes), test))
        lines = run_folder.read_metrics(place.path)
        if any(None in (line["train_loss"], line["test_loss"]) for line in lines):  # not finite
            diverged.append(one)
            row = np.zeros_like(row)
        right.append("".join(map(str, row.tolist())))
    return {"right": right, "diverged": diverged}


def _is_right(config, state, test):
    """1 for every image that the network has right and 0 for the others, int32 [M]."""

    def one(pair):
        image, label = pair
        return policy_training.evaluate(config, state, image[None], label[None], 1)["num_right"]

    return jax.lax.map(one, tuple(test), batch_size=_TEST_BATCH)


def decide(right: dict[str, np.ndarray], num_diverged: Mapping[str, int]) -> dict[str, Any]:
    """The verdict on rows in the order from simple to complicated.

    The recommendation starts from none and goes on to a row, other than random, that beats the one so far:
    every one of its trainings has a lower error than every one of the other's. With three on a side chance
    does that once in twenty times (the rank-sum test), once in eight at most if one side has no spread.
    Welch's test would ask for more: where an augmentation matters most, trainings without it differ most, one
    seed has twice the errors of another, and three say little about their mean. And it must not be the luck
    of the test images, which all trainings share: the difference of the two rows, image by image, is above
    zero on average, p < .05 by the two-sided t-test. Where every image has the same difference there is no
    spread to measure it by, and it counts from six images on: by the sign test, p = 2^(1 - M).

    A row is not recommended if one of its trainings diverged.

    Args:
      right: by name of the row, 0 or 1 [seeds, M]; "none" is one of them. All 0 of a seed whose loss
        was not finite.
      num_diverged: by name of the row, how many those are.

    Returns:
      {"rows": [{"name", "mean", "deviation", "n", "errors", "diverged"}], "test_images": M, "recommended": a
      name, "better_than_random": whether found is}; errors in %, deviation of a sample (n - 1).
    """
    recommended = "none"
    for name in right:
        can_be = name != "random" and not num_diverged[name]
        if can_be and _is_better(right[name], right[recommended]):
            recommended = name
    errors = {name: _errors(row) for name, row in right.items()}
    rows = [
        {
            "name": name,
            "mean": statistics.fmean(row),
            "deviation": statistics.stdev(row),
            "n": len(row),
            "errors": row,
            "diverged": num_diverged[name],
        }
        for name, row in errors.items()
    ]
    return {
        "rows": rows,
        "test_images": right["none"].shape[1],
        "recommended": recommended,
        "better_than_random": _is_better(right["found"], right["random"]),
    }


def _errors(right):
    """Test error of every seed, %."""
    return (100.0 - 100.0 * right.mean(axis=1)).tolist()


def _is_better(one, other):
    if max(_errors(one)) >= min(_errors(other)):
        return False
    images = other.mean(axis=0) - one.mean(axis=0)
    p = welch.p_value(images.tolist(), [0.0] * len(images))
    if p is None:  # the same difference on every image
        p = 2.0 ** (1 - len(images))
    return p < _LARGEST_P


def report(task: Task, path: pathlib.Path, verdict: dict[str, Any]) -> str:
    """The rows, the recommendation, and with which flags to train; `path` is that of the run folder."""
    shown = {row["name"]: "{mean:.1f} ± {deviation:.1f} %".format(**row) for row in verdict["rows"]}
    width = max(map(len, shown))
    lines = [
        f"{row['name']:{width}}  {shown[row['name']]}  n = {row['n']}"
        + (f", {row['diverged']} diverged" if row["diverged"] else "")
        for row in verdict["rows"]
    ]
    name = verdict["recommended"]
    said = "use none: no policy did better"
    if name != "none":
        what = "keep the policy" if name == "found" else f"use {name}"
        said = f"{what}: {shown[name]} against {shown['none']} without"
    images = f"p < {_LARGEST_P} on {verdict['test_images']} test images"
    lines.append(f"{said} (every training, {images})")
    if not verdict["better_than_random"]:
        lines.append("the policy found is not better than a random one")
    base = _base(task, name)
    flags = [f"--crop_padding={base['crop_padding']}", "--flip" if base["flip"] else "--noflip"]
    flags += [f"--cutout_length={base['cutout_length']}"]
    flags += [f"--{name}={base[name]:g}" for name in _COLORS if base[name]]
    if name not in ("none", "base"):
        flags = [
            f"--policy={path / 'recommended.json'}",
            f"--policy_position={task.method.policy_position}",
            *flags,
        ]
    return "\n".join([*lines, f"train with {shlex.join(flags)}"])
