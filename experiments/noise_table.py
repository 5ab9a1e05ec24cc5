"""What the original DADA search learns: its policies beside the published ones and beside pure noise.

    python -m experiments.noise_table experiments/results/noise

Reads FOLDER/table.json: for every task the published policy and the policy files of official searches (a
glob from FOLDER), null where there are none, and the number of policy updates before the policy is read.
Writes FOLDER/table.md, table.csv and table.png with the spread of probabilities and levels in three columns:
official searches of this project, the published policy, and as many updates on noise (`noise_simulation`).
"""

import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from dada import policies
from experiments.figures import figure_style
from experiments.runs import command_line
from experiments.summaries import noise_simulation, table_cells

_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
COLUMNS = ("found here", "published", "pure noise")


class Spread(NamedTuple):
    """What is compared of a policy; one number each."""

    probability: float  # standard deviation of all probabilities
    level: float  # standard deviation of all levels, those without effect included
    geometric: float  # mean |2 level - 1| of the geometric ops; 0 leaves the image as it is
    applied: float  # expected ops applied to an image


QUANTITIES = {
    "probability": "s.d. of the probabilities",
    "level": "s.d. of the levels",
    "geometric": "strength of the geometric ops, mean distance of 2 level from 1",
    "applied": "ops applied to an image",
}


class Task(NamedTuple):
    """A line of the table: spreads by column of COLUMNS."""

    name: str
    steps: int
    spreads: dict[str, list[Spread]]


def spread(policy: policies.Policy) -> Spread:
    """The numbers of a policy of kind sub_policies.

    Raises:
      ValueError: the policy is of another kind.
    """
    if policy.kind != "sub_policies":
        raise ValueError(f"policy: got the kind {policy.kind!r}, expected 'sub_policies'")
    content, names = policy.content, [row.name for row in policies.space(policy).rows]
    used = content.row >= 0
    is_geometric = used & np.isin(np.array(names)[content.row], _GEOMETRIC)
    strength = np.abs(2.0 * content.level[is_geometric] - 1.0)
    return Spread(
        float(content.probability[used].std()),
        float(content.level[used].std()),
        float(strength.mean()) if strength.size else float("nan"),
        sum(policies.op_mass(policy).values()),
    )


def read_tasks(folder: pathlib.Path, simulations: int) -> list[Task]:
    """The tasks of FOLDER/table.json with their policies read and their noise simulated.

    Raises:
      FileNotFoundError: no such file. ValueError: a task or a policy file is not what it should be.
    """
    path = folder / "table.json"
    tasks = []
    for index, line in enumerate(json.loads(path.read_text())["tasks"]):
        if sorted(line) != ["found", "name", "published", "steps"]:
            has = f"task {index} has {', '.join(line)}"
            raise ValueError(f"{path}: {has}, expected name, steps, found, published")
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), line["steps"]), simulations)
        columns = (
            [policies.load(file) for file in sorted(folder.glob(line["found"]))] if line["found"] else [],
            [policies.load(line["published"])] if line["published"] else [],
            [noise_simulation.simulate(key, line["steps"]) for key in keys],
        )
        spreads = {name: [spread(one) for one in of_column] for name, of_column in zip(COLUMNS, columns)}
        tasks.append(Task(line["name"], line["steps"], spreads))
    return tasks


def rows(tasks: list[Task]) -> list[tuple[Task, str, list[table_cells.Sample | None]]]:
    """(task, quantity, sample of each column), in the order of the table."""
    return [
        (task, name, [table_cells.sample([getattr(one, name) for one in task.spreads[c]]) for c in COLUMNS])
        for task in tasks
        for name in QUANTITIES
    ]


def markdown(tasks: list[Task]) -> str:
    """The table for readers."""
    lines = [
        "# What the original search learns",
        "",
        "Policies of the official preset, the published policies, and policies that the same update rules",
        "make of noise: a loss that knows nothing of the policy. Mean ± standard deviation over n policies.",
        "Where a column does not differ from the last one, its spread says nothing about augmentation.",
        "",
        "| task (policy updates) | quantity | found here | published | pure noise |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, name, samples in rows(tasks):
        here, published, noise = samples
        texts = [_text(here) if here else "not run", _text(published) if published else "–", _text(noise)]
        cells = [f"{task.name} ({task.steps})", QUANTITIES[name], *texts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(sample):
    spread_text = "" if sample.deviation is None else f" ± {sample.deviation:.3f} (n = {sample.count})"
    return f"{sample.mean:.3f}{spread_text}"


def to_csv(tasks: list[Task]) -> str:
    """The table for programs."""
    lines = ["task,steps,quantity,column,n,mean,std"]
    for task, name, samples in rows(tasks):
        for column, sample in zip(COLUMNS, samples):
            numbers = "0,," if sample is None else f"{sample.count},{sample.mean:.4f},"
            deviation = "" if sample is None or sample.deviation is None else f"{sample.deviation:.4f}"
            lines.append(f'"{task.name}",{task.steps},{name},{column},{numbers}{deviation}')
    return "\n".join(lines) + "\n"


def draw(tasks: list[Task], path: pathlib.Path) -> pathlib.Path:
    """Draws the spreads of probabilities and levels; returns the path."""
    colors = dict(zip(COLUMNS, (figure_style.HIGHLIGHT, figure_style.INK, figure_style.TRAIN)))
    with figure_style.style():
        figure = figure_style.titled("What the original search learns", 3.4)
        for axes, name in zip(figure.subplots(1, 2), ("probability", "level")):
            for column, shift, marker in zip(COLUMNS, (-0.2, 0.0, 0.2), "oDo"):
                label = column
                for line, task in enumerate(tasks):
                    values = [getattr(one, name) for one in task.spreads[column]]
                    places = np.full(len(values), line + shift)
                    style = {"color": colors[column], "markersize": 4, "alpha": 0.7, "label": label}
                    axes.plot(places, values, marker, **style)
                    label = None
            labels = [f"{task.name}\n{task.steps} updates" for task in tasks]
            axes.set_xticks(range(len(tasks)), labels, fontsize=figure_style.SMALL)
            axes.set(title=QUANTITIES[name].capitalize(), ylim=(0, None))
            axes.grid(axis="x", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        return figure_style.save(path, figure)


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.integer("simulations", 12, "Simulated searches for each task.", 2, 100_000)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    folder = pathlib.Path(arguments[0])
    tasks = read_tasks(folder, values.simulations)
    (folder / "table.md").write_text(markdown(tasks))
    (folder / "table.csv").write_text(to_csv(tasks))
    draw(tasks, folder / "table.png")
    print(f"{folder / 'table.md'}: {len(tasks)} tasks")


if __name__ == "__main__":
    command_line.run(define, main)
