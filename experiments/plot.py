"""Draws figures: of a finished run into its folder again, or of DeepAA policies, published or found.

    python -m experiments.plot RUN
    python -m experiments.plot POLICY ... FOLDER

RUN is the folder of a search, of several seeds of one, or of a training (`finished_run`). POLICY is a shipped
name or the path of a policy.json of kind "layers" (`deepaa_figures`). Prints the paths of the figures.
"""

from absl import flags

from experiments.figures import deepaa_figures, finished_run
from experiments.runs import command_line


def define(values: flags.FlagValues) -> None:
    del values  # it has none


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    del values
    if not arguments:
        raise ValueError("got no argument, expected a run folder, or policies and a folder")
    *names, folder = arguments
    for path in deepaa_figures.draw_policies(folder, names) if names else finished_run.draw(folder):
        print(path)


if __name__ == "__main__":
    command_line.run(define, main)
