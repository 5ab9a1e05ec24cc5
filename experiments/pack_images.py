"""Packs a folder of images per class into a few large files, which are read faster and from any place.

    python -m experiments.pack_images --dataset=FOLDER --packed=DEST

Writes DEST/train-00000.bin, ... (image files back to back, as they are) and DEST/train.npz (where each lies,
and its label), and the same of val/ or test/, and of valid/ if there is one. Every image is decoded once, so
that a damaged one is found here. --dataset=DEST then stands for the folder in the other commands.
"""

import pathlib
import shutil

from absl import flags

from experiments.data import sources
from experiments.runs import command_line


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    add = command_line.definers(values)
    add.string("dataset", None, "Folder with train/<class>/ and val/<class>/ or test/<class>/.")
    add.string("packed", None, "Folder to write; new or empty.")


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    command_line.require_no_arguments(arguments)
    for name in ("dataset", "packed"):
        if values[name].value is None:
            raise ValueError(f"--{name}: got none, expected a folder")
    root, packed = (pathlib.Path(values[name].value).expanduser() for name in ("dataset", "packed"))
    if sources.is_packed(root):
        raise ValueError(f"--dataset={root}: packed already")
    if packed.exists() and (not packed.is_dir() or any(packed.iterdir())):
        raise ValueError(f"--packed={packed} is not an empty folder: choose another")
    parts = sources.open_parts(root)
    packed.mkdir(parents=True, exist_ok=True)
    try:
        for name in sorted(parts, key="train".__eq__):  # train.npz last: with it the folder is a data set
            sources.pack(parts[name], packed, name)
    except ValueError:
        shutil.rmtree(packed)  # half a set
        raise
    print(f"packed   {packed}")


if __name__ == "__main__":
    command_line.run(define, main)
