"""Tables: the committed ones again byte for byte, statistics, collecting runs, running what is missing."""

import json
import math
import os
import pathlib
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import small_runs
from PIL import Image

from dada import ops, policies
from experiments import search, table_run, tables, train
from experiments.data import datasets, planting
from experiments.figures import table_figures
from experiments.runs import command_line, run_folder, welch
from experiments.summaries import table_cells, table_definition, table_runs, table_text

RESOLVE = {"train": train.resolve, "search": search.resolve}
ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMITTED = [
    path.parent
    for path in sorted((ROOT / "experiments" / "results").glob("*/table.json"))
    if "rows" in json.loads(path.read_text())
]
DEFINITION = {
    "title": "A table",
    "about": ["For tests."],
    "results": "dada",
    "hours": "search_hours",
    "columns": [
        {
            "key": "small",
            "name": "CIFAR-10, small",
            "train": ["--model=wrn_10_1", "--epochs=3"],
            "search": ["--model=wrn_10_1"],
            "paper": "cifar10/wrn_40_2",
        },
        {
            "key": "large",
            "name": "CIFAR-10, large",
            "train": ["--model=wrn_28_10"],
            "paper": "cifar10/wrn_28_10",
        },
    ],
    "rows": [
        {"key": "identity", "name": "identity", "role": "identity", "train": ["--policy=none", "--noflip"]},
        {"key": "cutout", "name": "Cutout", "paper": "Cutout", "train": {"small": ["--policy=none"]}},
        *(
            {"key": f"random_{n}", "name": f"random {n}", "role": "random", "train": [f"--policy=random:{n}"]}
            for n in (0, 1)
        ),
        {"key": "found", "name": "found", "search": ["--preset=official"], "paper": "DADA"},
    ],
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # flag files are named from there


def command(module, *arguments):
    module.main(*command_line.parse(module.define, list(arguments)))


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "table.json").write_text(json.dumps({**DEFINITION, **changes}))
    return folder


@pytest.fixture
def definition(tmp_path):
    return table_definition.load(write(tmp_path / "table"), RESOLVE)


def run(definition, column, row, seed, error, *, best=None, **changes):
    recipe = definition.recipes[column, row]
    found = None
    if recipe.search_flags is not None:
        found = table_runs.Search(seed, recipe.search_flags, 720.0, "a GPU", "policies/x.json")
    fields = {
        "last": {"epoch": 3, "test_error": error},
        "best": {"epoch": 2, "test_error": error if best is None else best},
        "seconds": 3600.0,
        "hardware": "a GPU",
    }
    return table_runs.Run(
        column, row, seed, recipe.train_flags, **{**fields, **changes}, jax="0", commit=None, search=found
    )


def write_run(path, command_flags, error, seconds=100.0, seeds_at_once=1, contents=None, **numbers):
    """The folder of a finished training."""
    folder = run_folder.create(path, command_flags, contents)
    policies.save(folder.policy_path, policies.identity())
    result = {"epoch": 3, "test_error": error, "test_accuracy": 1 - error, **numbers}
    timing = {"seconds_run": seconds, "seeds_at_once": seeds_at_once}
    folder.write_summary({"recipe": {}, "last": result, "best": result, **timing})
    folder.finish()
    return path


def write_search(path, command_flags, contents=None):
    folder = run_folder.create(path, command_flags, contents)
    folder.write_summary({"steps": 3, "seconds_run": 50.0, "seeds_at_once": 2})
    policies.save(folder.policy_path, policies.identity())
    folder.finish()
    return path


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_runs_give_the_committed_table(folder):
    definition = table_definition.load(folder, RESOLVE)
    cells = table_cells.cells(definition, table_runs.read(definition))
    assert (folder / "table.md").read_text() == table_text.markdown(definition, cells)
    assert (folder / "table.csv").read_text() == table_text.to_csv(definition, cells)


def test_there_are_committed_tables():
    assert {"small_data", "dada_cifar10", "trivialaugment_cifar100"} <= {folder.name for folder in COMMITTED}


@pytest.mark.parametrize(
    ("table", "row", "column", "expected"),
    [
        ("dada", "cifar100/wrn_40_2", "DADA", (20.9, None)),
        ("ddas_table_2", "cifar100/wrn_28_10", "DDAS", (16.6, 0.2)),
        ("ddas_table_4", "coco/resnet_50", "DDAS", (38.1, 0.1)),
        ("ddas_table_5", "imagenet/resnet_50", "0.4", (22.2, None)),
        ("ddas_table_6", "cifar100/wrn_28_10", "p_o fixed", (16.7, None)),
        ("trivialaugment", "cifar100/wrn_28_10", "TA (Wide)", (15.67, 0.17)),
        ("deepaa", "cifar10/wrn_28_10", "DeepAA", (2.44, 0.14)),
        ("deepaa_batch_augmentation", "cifar100/wrn_28_10", "DeepAA", (14.39, 0.17)),
        ("search_hours", "cifar100", "DADA", (0.2, None)),
        ("search_hours", "cifar100", "PyramidAA", (None, None)),
    ],
)
def test_papers_tables(table, row, column, expected):
    assert table_definition.lookup(table_definition.paper_table(table), row, column) == expected


def test_every_paper_table_is_read_and_named_with_its_source():
    for file in table_definition.PAPER_TABLES.glob("*.json"):
        table = table_definition.paper_table(file.stem)
        assert table.source and table.status and table.epoch in ("last", "best")


def test_welch_against_closed_forms():
    # Two numbers on each side with equal variances: df = 2, p = 1 - t / sqrt(2 + t^2).
    t = 3.0 / 1.0
    p = welch.p_value([0.0, 2**0.5 * 1.0], [3.0, 3.0 + 2**0.5])
    assert p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    # Five and five, t = 2.306 at df = 8 is the five percent point of the tables.
    first = [-1.0, -0.5, 0.0, 0.5, 1.0]
    shift = 2.306004 * math.sqrt(2 * 0.625 / 5)
    assert welch.p_value(first, [x + shift for x in first]) == pytest.approx(0.05, abs=1e-6)
    # Unequal variances and counts: the value that scipy gives.
    assert welch.p_value([1, 2, 4], [2, 7, 3, 9]) == pytest.approx(0.18768901375448, rel=1e-9)
    # Zeros on one side: one number in four is not zero, df = 3, t = 1.
    expected = 1 - 2 / math.pi * (math.atan(1 / 3**0.5) + 3**0.5 / 4)
    assert welch.p_value([1.0, 0.0, 0.0, 0.0], [0.0] * 4) == pytest.approx(expected, rel=1e-9)
    assert welch.p_value([1.0, 2.0], [1.0, 2.0]) == pytest.approx(1.0)
    assert welch.p_value([1.0], [1.0, 2.0]) is None
    assert welch.p_value([1.0, 1.0], [2.0, 2.0]) is None


def test_cells_hold_means_tests_costs_and_the_papers_values(definition):
    runs = [run(definition, "small", "random_0", s, 0.20 + 0.01 * s) for s in range(2)]
    runs += [run(definition, "small", "random_1", s, 0.30 + 0.01 * s) for s in range(2)]
    runs += [run(definition, "small", "found", s, 0.10 + 0.02 * s, best=0.09) for s in range(3)]
    cells = table_cells.cells(definition, runs)
    assert ("large", "cutout") not in cells  # a row that this column does not have
    found = cells["small", "found"]
    assert found.last == pytest.approx((12.0, 2.0, 3)) and found.best == pytest.approx((9.0, 0.0, 3))
    assert found.paper == 3.6
    assert found.difference == pytest.approx(9.0 - 3.6)  # the paper reports the best epoch
    assert (found.search_hours, found.train_hours, found.paper_hours) == (0.2, 1.0, 0.1)
    expected = welch.p_value([10.0, 12.0, 14.0], [20.0, 21.0, 30.0, 31.0])
    assert found.p_value == pytest.approx(expected)
    other = cells["small", "random_0"]
    assert other.p_value == pytest.approx(welch.p_value([20.0, 21.0], [30.0, 31.0]))
    assert cells["small", "identity"].last is None and cells["small", "identity"].p_value is None
    text = table_text.markdown(definition, cells)
    assert "| found | 12.00 ± 2.00 | 3 | 9.00 ± 0.00 | 3.6 | +5.40 |" in text
    assert "| identity | not run | 0 |" in text
    assert "All random policies together: 25.50 ± 5.80 %, 4 runs." in text
    assert "| Cutout | – |" in text and "| found | not run (2.7) |" in text  # the column that was not run
    assert "read in the source" in text
    lines = table_text.to_csv(definition, cells).splitlines()
    assert len(lines) == 1 + 9 and lines[5].startswith("small,found,3,12,2,9,")


def shared(tmp_path):
    """A table with two columns that differ in their searches only."""
    small, other = (dict(DEFINITION["columns"][0]) for _ in range(2))
    small["search"], other["search"], other["key"] = ["--num_valid=100"], ["--num_valid=500"], "other"
    return table_definition.load(write(tmp_path / "shared", columns=[small, other]), RESOLVE)


def test_columns_share_the_runs_of_one_recipe(tmp_path, monkeypatch):
    definition = shared(tmp_path)
    errors = {"identity": 0.4, "random_0": 0.2, "random_1": 0.3}
    runs = [
        run(definition, "small", row, s, error + 0.01 * s) for row, error in errors.items() for s in (0, 1)
    ]
    runs += [run(definition, "other", "found", s, 0.1 + 0.01 * s) for s in (0, 1)]
    cells = table_cells.cells(definition, runs)
    assert (
        cells["other", "identity"].last
        == cells["small", "identity"].last
        == pytest.approx((40.5, 0.707, 2), rel=1e-3)
    )
    assert cells["other", "found"].p_value < 0.1 and not cells["small", "found"].runs
    figure = Image.open(table_figures.draw(definition, cells, tmp_path / "one.png"))
    assert figure.height < 0.7 * figure.width  # one panel, not one for each column
    started = []

    def start(line, **_):
        started.append(line)
        return subprocess.CompletedProcess(line, 0)

    small_runs.stand_in(monkeypatch, start)
    run_table(definition, tmp_path, "--column=other", "--num_seeds=1", "--rows=identity,found")
    places = [next(text for text in line if text.startswith("--run_dir=")) for line in started]
    ends = "small/identity/seed_0", "other/found/search/seed_0", "other/found/seed_0"
    assert all(place.endswith(end) for place, end in zip(places, ends, strict=True))


def test_the_bound_of_the_shift_is_the_shift():
    folder = ROOT / "experiments" / "results" / "shift"
    recipe = table_definition.load(folder, RESOLVE).recipes["valid_100", "exact"]
    exact = policies.load(folder / "exact.json")
    (rows,), (levels,), (probabilities,) = exact.content.row, exact.content.level, exact.content.probability
    values = np.asarray(ops.level_to_value(policies.space(exact), rows, levels, np.ones(3)))
    names = [policies.space(exact).rows[row].op for row in rows]
    planted = planting.parse(recipe.train_flags["planted_op"])
    assert list(zip(names, values)) == [(name, np.float32(value)) for name, value in planted]
    assert (probabilities == 1).all()


def test_the_figure_is_drawn_twice_the_same(definition, tmp_path):
    runs = [run(definition, "small", row, s, 0.1 + 0.01 * s) for row in ("random_0", "found") for s in (0, 1)]
    cells = table_cells.cells(definition, runs)
    images = [
        table_figures.draw(definition, cells, tmp_path / name).read_bytes() for name in ("a.png", "b.png")
    ]
    assert images[0] == images[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": DEFINITION["rows"][:2]}, "none has the role 'random'"),
        ({"rows": DEFINITION["rows"][1:]}, "none has the role 'identity'"),
        (
            {"rows": [*DEFINITION["rows"], DEFINITION["rows"][0]]},
            "expected one or more different identifiers",
        ),
        ({"rows": [*DEFINITION["rows"], {"key": "x", "name": "x", "train": ["--epoch=3"]}]}, "epoch"),
        ({"rows": [*DEFINITION["rows"], {"key": "x", "name": "x", "paper": "DADO"}]}, "'DADO' is not one of"),
        ({"rows": [*DEFINITION["rows"], {"key": "x", "name": "x", "role": "best"}]}, "role: got 'best'"),
        ({"rows": [*DEFINITION["rows"], {"key": "x", "title": "x"}]}, "title"),
        ({"results": "dado"}, "paper table 'dado': expected one of dada, "),
        ({"metric": "test_mAP"}, "metric: got 'test_mAP', expected one of test_error, "),
        ({"metric": "test_AP50"}, "metric test_AP50: .*got --task=classification, expected detection"),
    ],
)
def test_bad_definitions_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        table_definition.load(write(tmp_path / "table", **changes), RESOLVE)


def test_a_table_of_detectors_is_that_of_their_average_precision(tmp_path):
    columns = [{"key": "cells", "name": "Cells", "train": ["--task=detection", "--epochs=3"]}]
    rows = [
        {"key": "identity", "name": "none", "role": "identity"},
        {"key": "random", "name": "random", "role": "random", "train": ["--policy=random:0"]},
    ]
    changes = {"metric": "test_AP50", "results": None, "hours": None, "columns": columns, "rows": rows}
    definition = table_definition.load(write(tmp_path / "table", **changes), RESOLVE)
    path = tmp_path / "runs"
    flags = {**definition.recipes["cells", "identity"].train_flags, "seed": 0, "run_dir": str(path)}
    write_run(path, flags, 0.5, test_AP50=0.25, test_AP=0.125)
    runs, unused = table_runs.collect(definition, path)
    assert not unused and runs[0].last == {"epoch": 3, "test_AP50": 0.25}
    cells = table_cells.cells(definition, runs)
    text = table_text.markdown(definition, cells)
    assert "| policy | test AP50, % | n |" in text and "| none | 25.00 | 1 | 25.00 |" in text
    assert table_text.to_csv(definition, cells).startswith("column,row,n,test_AP50_last,")
    assert table_figures.draw(definition, cells, tmp_path / "table.png").is_file()


def test_a_missing_definition_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.json: no such file"):
        table_definition.load(tmp_path, RESOLVE)


def test_recipes_ignore_place_and_seed_and_know_later_flags(definition):
    recipe = definition.recipes["small", "identity"]
    assert recipe.is_same(recipe._replace(train=["--in_other", "--words"])) and not recipe.is_same(None)
    assert not recipe.is_same(recipe._replace(search_flags={}))
    wanted = recipe.train_flags
    assert not {"seed", "run_dir", "data_dir"} & set(wanted) and wanted["flip"] == "false"
    old = {name: text for name, text in wanted.items() if name != "dtype"}
    defaults = definition.defaults["train"]
    assert table_definition.is_same(wanted, old, defaults)  # a run from before the flag existed
    assert not table_definition.is_same({**wanted, "dtype": "bfloat16"}, old, defaults)
    assert not table_definition.is_same(wanted, {**wanted, "epochs": "4"}, defaults)
    assert not table_definition.is_same(wanted, {**wanted, "gone": "1"}, defaults)
    assert "policy" not in definition.recipes["small", "found"].train_flags


def write_runs(definition, root):
    """Three trainings and a search, as table_run lays them out."""
    recipes = definition.recipes
    searched = root / "small" / "found" / "search" / "seed_0"
    write_search(searched, {**recipes["small", "found"].search_flags, "seed": 0, "run_dir": str(searched)})
    (searched.parent / "summary.json").write_text('{"seeds": [0, 1]}')  # of a search with several seeds
    for seed in (0, 1):
        path = root / "small" / "identity" / f"seed_{seed}"
        flags = {**recipes["small", "identity"].train_flags, "seed": seed, "run_dir": str(path)}
        write_run(path, flags, 0.25, seconds=100.0, seeds_at_once=2)
    path = root / "small" / "found" / "seed_0"
    flags = {**recipes["small", "found"].train_flags, "seed": 0, "run_dir": str(path)}
    write_run(path, {**flags, "policy": str(searched / "policy.json")}, 0.125)


def test_runs_are_collected_into_the_table(definition, tmp_path, capsys):
    write_runs(definition, tmp_path / "runs")
    other = {**definition.recipes["small", "identity"].train_flags, "epochs": "9", "seed": 0, "run_dir": "x"}
    write_run(tmp_path / "runs" / "other", other, 0.5)
    (tmp_path / "runs").rename(tmp_path / "moved")
    command(tables, f"--collect={tmp_path / 'moved'}", str(definition.path))
    output = capsys.readouterr().out
    assert f"in no cell of this table: {tmp_path / 'moved' / 'other'}" in output
    assert "3 runs in 2 of 9 cells" in output
    runs = table_runs.read(definition)
    assert [(r.column, r.row, r.seed) for r in runs] == [
        *(("small", "identity", 0), ("small", "identity", 1), ("small", "found", 0))
    ]
    assert runs[0].seconds == 50.0 and runs[2].search.seconds == 25.0 and "CPU cores" in runs[0].hardware
    assert policies.load(definition.path / runs[2].search.policy).kind == "sub_policies"
    assert "| found | 12.50 | 1 |" in (definition.path / "table.md").read_text()
    # Once more, without the run folders: the same table from runs.jsonl.
    before = (definition.path / "table.md").read_bytes()
    command(tables, str(definition.path))
    assert (definition.path / "table.md").read_bytes() == before
    assert (definition.path / "table.png").exists()


def test_a_policy_that_a_recipe_names_may_be_that_of_a_search(tmp_path):
    search_path = write_search(tmp_path / "searched", {"seed": 0, "method": "dada"})
    rows = json.loads(json.dumps(DEFINITION["rows"]))
    rows[0]["train"] = [f"--policy={search_path / 'policy.json'}"]
    named = table_definition.load(write(tmp_path / "named", rows=rows), RESOLVE)
    cell = named.columns[0].key, rows[0]["key"]
    path = tmp_path / "runs" / "seed_0"
    write_run(path, {**named.recipes[cell].train_flags, "seed": 0, "run_dir": str(path)}, 0.25)
    (found,), unused = table_runs.collect(named, tmp_path / "runs")
    assert (found.column, found.row) == cell and found.search is None and not unused


def test_runs_of_other_recipes_are_refused(definition):
    line = run(definition, "small", "identity", 0, 0.1)._asdict()
    line["flags"] = {**line["flags"], "epochs": "9"}
    (definition.path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: .* not the recipe of row identity"):
        table_runs.read(definition)
    (definition.path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1"):
        table_runs.read(definition)


@pytest.fixture
def processes(monkeypatch, definition):
    """Stands in for processes: notes their command lines, and finishes them unless told otherwise."""
    started, failing = [], []

    def start(line, **_):
        started.append(" ".join(line[2:]))
        arguments = dict(text.removeprefix("--").split("=", 1) for text in line[3:] if "=" in text)
        if any(text in started[-1] for text in failing):
            return subprocess.CompletedProcess(line, 2)
        module = {one.__name__: one for one in (search, train)}[line[2]]
        settings = module.resolve(line[3:])
        contents = module.contents_of(settings, datasets.load(settings["dataset"]))
        first, count = int(arguments["seed"]), int(arguments["num_seeds"])
        for seed in range(first, first + count):
            path = pathlib.Path(arguments["run_dir"])
            path = path / f"seed_{seed}" if count > 1 else path
            row = path.parent.name if path.parent.name != "search" else "found"
            recipe = definition.recipes["small", row]
            place = {"seed": seed, "run_dir": str(path)}
            if module is search:
                write_search(path, {**recipe.search_flags, **place}, contents)
            else:
                flags = {"policy": arguments["policy"], **recipe.train_flags, **place}
                write_run(path, flags, 0.25, contents=contents)
        return subprocess.CompletedProcess(line, 0)

    small_runs.stand_in(monkeypatch, start)
    return started, failing


def run_table(definition, tmp_path, *arguments):
    usual = ("--column=small", f"--run_dir={tmp_path / 'runs'}", "--num_seeds=2")
    command(table_run, *usual, *arguments, str(definition.path))


def test_the_runner_runs_what_is_missing(definition, tmp_path, processes, capsys):
    started, failing = processes
    failing.append("random:1")
    with pytest.raises(command_line.Interrupted, match=r"2 runs failed: .*random_1/seed_0, "):
        run_table(definition, tmp_path)
    assert len(started) == 2 * 6
    assert "experiments.train --model=wrn_10_1 --epochs=3 --policy=none" in started[0]
    assert "--seed=0" in started[5] and "--seed=1" in started[6]  # a whole seed before the next
    searched = tmp_path / "runs" / "small" / "found" / "search" / "seed_0"
    assert started[4].startswith("experiments.search --model=wrn_10_1 --preset=official")
    assert f"--policy={searched / 'policy.json'}" in started[5] and "--resume" not in "".join(started)
    failing.clear()
    started.clear()
    run_table(definition, tmp_path)
    assert len(started) == 2 and all("random:1" in line for line in started)
    started.clear()
    run_table(definition, tmp_path)
    assert started == []
    command(tables, f"--collect={tmp_path / 'runs'}", str(definition.path))
    assert "10 runs in 5 of 9 cells" in capsys.readouterr().out


def test_the_runner_knows_policies_that_were_replaced(definition, tmp_path, processes, capsys):
    run_table(definition, tmp_path, "--rows=found")
    searched = tmp_path / "runs" / "small" / "found" / "search" / "seed_1"
    policies.save(searched / "policy.json", policies.random_policy(0))
    with pytest.raises(ValueError, match=r"found/seed_1: policy: got .*, expected .*, with which"):
        run_table(definition, tmp_path, "--rows=found")
    assert len(processes[0]) == 4
    command(tables, f"--collect={tmp_path / 'runs'}", str(definition.path))
    output = capsys.readouterr().out
    assert f"in no cell of this table: {searched.parent.parent / 'seed_1'}" in output
    assert "1 runs in 1 of 9 cells" in output
    (searched.parent.parent / "seed_1" / "inputs.json").unlink()
    with pytest.raises(ValueError, match=r"seed_1 has no inputs\.json: what this older run was made of"):
        run_table(definition, tmp_path, "--rows=found")


def test_the_runner_goes_on_with_what_was_interrupted(definition, tmp_path, processes):
    started, _ = processes
    path, recipe = tmp_path / "runs" / "small" / "cutout" / "seed_1", definition.recipes["small", "cutout"]
    contents = train.contents_of(train.resolve(recipe.train), datasets.load("embedded"))
    run_folder.create(path, {**recipe.train_flags, "seed": 1}, contents)
    with pytest.raises(ValueError):  # the stand-in opens a new folder
        run_table(definition, tmp_path, "--rows=cutout")
    assert "--resume" not in started[0] and started[1].endswith("--resume")


def test_the_runner_gives_seeds_to_one_process(definition, tmp_path, processes):
    started, _ = processes
    run_table(definition, tmp_path, "--num_seeds=3", "--seeds_at_once=2", "--rows=cutout,found")
    counts = [(line.split()[0].split(".")[1], line.split("--seed=")[1].split()[0]) for line in started]
    assert counts == [
        *(("train", "0"), ("search", "0"), ("train", "0"), ("train", "1")),
        *(("train", "2"), ("search", "2"), ("train", "2")),
    ]
    assert "--num_seeds=2" in started[0] and "--num_seeds=1" in started[2]


def starts(started):
    """Row and seed of the runs that were started."""
    return [line.split("--run_dir=")[1].split()[0].split("/small/")[1] for line in started]


def test_the_most_telling_rows_come_first(tmp_path, processes):
    definition = table_definition.load(write(tmp_path / "table", order=["cutout", "random_1"]), RESOLVE)
    run_table(definition, tmp_path, "--num_seeds=1", "--rows=random_0,random_1,identity,cutout")
    assert starts(processes[0]) == [f"{row}/seed_0" for row in ("cutout", "random_1", "identity", "random_0")]
    with pytest.raises(ValueError, match=r"table\.json: ValueError: order: got best, expected keys of rows"):
        table_definition.load(write(tmp_path / "table", order=["cutout", "best"]), RESOLVE)


def test_what_is_recorded_can_be_left_out(definition, tmp_path, processes):
    write_runs(definition, tmp_path / "elsewhere")  # seeds 0 and 1 of identity, 0 of found
    table_runs.collect(definition, tmp_path / "elsewhere")
    run_table(definition, tmp_path, "--skip_recorded", "--rows=identity,cutout,found")
    expected = ["cutout/seed_0", "cutout/seed_1", "found/search/seed_1", "found/seed_1"]
    assert starts(processes[0]) == expected


def test_cells_without_data_are_left_out(tmp_path, processes, capsys):
    columns = [{**DEFINITION["columns"][0], "key": "cifar", "train": ["--dataset=cifar10"]}]
    columns += DEFINITION["columns"][:1]
    definition = table_definition.load(write(tmp_path / "table", columns=columns), RESOLVE)
    usual = (f"--run_dir={tmp_path / 'runs'}", str(definition.path))
    command(table_run, *usual, f"--data_dir={tmp_path}", "--rows=identity,cutout")
    assert starts(processes[0]) == ["identity/seed_0", "cutout/seed_0"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 cells cannot be run here: cifar10: no complete set; looked for ")
    with pytest.raises(FileNotFoundError, match=r"no cell can be run here: .* needs --data_dir"):
        command(table_run, "--column=cifar", *usual)


def test_a_data_set_is_not_read_for_every_row(definition, tmp_path, processes, monkeypatch):
    run_table(definition, tmp_path)
    reads, load = [], datasets.load
    monkeypatch.setattr(datasets, "load", lambda *names, **more: reads.append(names) or load(*names, **more))
    run_table(definition, tmp_path)
    assert len(reads) == 2  # by trainings and by searches, whose flags differ


def test_a_run_is_stopped_in_time(tmp_path):
    values, _ = command_line.parse(table_run.define, ["--seconds=60"])
    begin = time.monotonic()
    assert table_run.deadline(values) == pytest.approx(begin + 45.0, abs=1.0)
    for seconds in (1.0, -1.0):
        with pytest.raises(table_run.OutOfTime):
            table_run.start(train, [], tmp_path / "run", values, [0], begin + seconds)
    assert time.monotonic() - begin < 5.0 and not (tmp_path / "run").exists()


def test_a_run_ends_with_its_table(tmp_path, monkeypatch):
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()  # importing jax takes longer

    monkeypatch.setattr(subprocess, "Popen", Process)
    values, _ = command_line.parse(table_run.define, [])
    with pytest.raises(SystemExit) as end:
        table_run.start(train, [], tmp_path / "run", values, [0], math.inf)
    assert end.value.code == 143 and [process.poll() for process in started] == [-signal.SIGKILL]


def test_a_stopped_table_goes_on_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    small_runs.write_data_set(tmp_path / "tiny.npz", 40, 8)
    line = [f"--dataset={tmp_path / 'tiny.npz'}", "--model=wrn_10_1", "--epochs=3", "--batch_size=20"]
    column = {"key": "small", "name": "", "train": [*line, "--num_devices=1"]}
    rows = [{**row, "train": row["train"]} for row in DEFINITION["rows"] if "role" in row]
    definition = table_definition.load(write(tmp_path / "table", columns=[column], rows=rows), RESOLVE)
    whole, stopped = (tmp_path / name / "small" / "identity" / "seed_0" for name in ("whole", "stopped"))
    run, usual = subprocess.run, ("--rows=identity", "--seconds=500", str(definition.path))
    command(table_run, f"--run_dir={tmp_path / 'whole'}", *usual)

    def run_one_epoch(line, timeout, **_):
        assert 400 < timeout <= 485
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        small_runs.kill_when(process, lambda: (stopped / "checkpoints" / "2").exists())
        raise subprocess.TimeoutExpired(line, timeout)

    small_runs.stand_in(monkeypatch, run_one_epoch)
    command(table_run, f"--run_dir={tmp_path / 'stopped'}", *usual)
    assert "the time is over; the same command goes on" in capsys.readouterr().out
    assert not run_folder.RunFolder(stopped).is_finished
    small_runs.stand_in(monkeypatch, run)
    command(table_run, f"--run_dir={tmp_path / 'stopped'}", *usual)
    assert run_folder.RunFolder(stopped).is_finished and "resumed" in run_folder.read_environment(stopped)
    ends = [run_folder.RunFolder(path) for path in (whole, stopped)]
    first, second = (
        [{k: v for k, v in line.items() if "seconds" not in k} for line in run_folder.read_metrics(end.path)]
        for end in ends
    )
    assert first == second and len(first) == 3


def test_the_runner_refuses_a_folder_with_other_runs(definition, tmp_path, processes):
    path = tmp_path / "runs" / "small" / "cutout" / "seed_0"
    write_run(path, {**definition.recipes["small", "cutout"].train_flags, "epochs": "9", "seed": 0}, 0.5)
    with pytest.raises(ValueError, match="seed_0: a run with --epochs=9, expected "):
        run_table(definition, tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--column=tiny", "--column: got 'tiny', expected one of small, large"),
        ("--rows=best", "--rows: got best, expected some of identity, "),
        ("--epochs=3", "unknown flag --epochs"),  # recipes stand in the table.json
    ],
)
def test_the_runner_refuses_bad_input(definition, tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        run_table(definition, tmp_path, argument)


def test_the_runner_needs_a_folder(definition):
    with pytest.raises(ValueError, match="--run_dir: expected the folder"):
        command(table_run, "--column=small", str(definition.path))


@pytest.mark.parametrize(
    ("wanted", "was_run", "expected"),
    [
        ("Brightness:0.5,Rotate:25", "Brightness:0.5,Rotate:25.0", True),
        ("Invert,Rotate-", "Invert:0.0,Rotate:-24.0", True),
        ("Brightness:0.5,Rotate:25", "Rotate:25.0,Brightness:0.5", False),
        ("Rotate:25", "Rotate:24.0", False),
        ("Rotate", "ShearX:0.2", False),
        ("Rotate:25", "Rotate:25.0,Invert:0.0", False),
    ],
)
def test_planted_ops_are_compared_by_value(wanted, was_run, expected):
    flags = [{"planted_op": text, "model": "wrn_10_1"} for text in (wanted, was_run)]
    assert table_definition.is_same(*flags, {}) == expected
    assert not table_definition.is_same(flags[0], {"model": "wrn_10_1"}, {})
