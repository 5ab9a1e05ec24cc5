"""Draws a table of trainings: means over seeds, papers' values, costs, tests against random policies.

    python -m experiments.tables experiments/results/small_data
    python -m experiments.tables experiments/results/small_data --collect=runs/small_data

Reads TABLE/table.json (`table_definition`) and TABLE/runs.jsonl, writes TABLE/table.md, table.csv and
table.png. With --collect the finished trainings below a folder enter runs.jsonl first (`table_runs`), and the
policies that searches found for them enter TABLE/policies. Cells that were not run say so.
"""

from absl import flags

from experiments import search, train
from experiments.figures import table_figures
from experiments.runs import command_line
from experiments.summaries import table_cells, table_definition, table_runs, table_text


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.string("collect", None, "Folder with finished run folders that enter the table.")


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    definition = table_definition.load(arguments[0], {"train": train.resolve, "search": search.resolve})
    if values.collect:
        runs, unused = table_runs.collect(definition, values.collect)
        for path in unused:
            print(f"in no cell of this table: {path}")
    else:
        runs = table_runs.read(definition)
    cells = table_cells.cells(definition, runs)
    (definition.path / "table.md").write_text(table_text.markdown(definition, cells))
    (definition.path / "table.csv").write_text(table_text.to_csv(definition, cells))
    table_figures.draw(definition, cells, definition.path / "table.png")
    filled = sum(1 for cell in cells.values() if cell.runs)
    print(f"{definition.path / 'table.md'}: {len(runs)} runs in {filled} of {len(cells)} cells")


if __name__ == "__main__":
    command_line.run(define, main)
