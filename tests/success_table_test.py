"""The success table: cells by hand, running what is missing, recording it, refusing what does not fit."""

import json
import pathlib
import shutil
import subprocess

import pytest
import small_runs

from experiments import search, success_table
from experiments.data import datasets, planting
from experiments.figures import success_figure
from experiments.runs import command_line, run_folder
from experiments.summaries import success_cells, success_definition, success_runs, success_text

COMMITTED = small_runs.ROOT / "experiments" / "results" / "success"
DEFINITION = {
    "title": "A table",
    "about": ["For tests."],
    "num_seeds": 2,
    "cases": [
        {"key": "Rotate-", "name": "Rotate −24°", "planted_op": "Rotate:-24"},
        {"key": "Invert", "name": "Invert"},
    ],
    "searches": [
        {"key": "dada", "name": "DADA", "flags": ["--model=wrn_10_1"]},
        {"key": "official", "name": "Official", "flags": ["--model=wrn_10_1", "--preset=official"]},
        {
            **{"key": "ddas", "name": "DDAS", "cases": ["Invert"], "num_seeds": 1},
            "flags": ["--method=ddas", "--model=wrn_10_1"],
        },
    ],
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "table")


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "table.json").write_text(json.dumps({**DEFINITION, **changes}))
    return folder


def load(folder):
    return success_definition.load(folder, search.resolve)


def command(folder, *arguments):
    success_table.main(*command_line.parse(success_table.define, [*arguments, str(folder)]))


def write_run(path, line, *, rank=1, level_found=0.5, step=7, recommended=None):
    """What a search of a command line leaves; the planted op has a mass of 0.9, or of 0.05 below rank 1."""
    settings = search.resolve(line)
    ((name, value),) = planting.parse(settings["planted_op"])
    settings["planted_op"] = f"{name}:{value or 0.0}"
    row = "Rotate-" if name == "Rotate" and settings["preset"] == "corrected" else name
    contents = search.contents_of(settings, datasets.load(settings["dataset"]))
    folder = run_folder.create(path, settings, contents)
    (path / "environment.json").write_text(json.dumps({"platform": "cpu", "cpu_count": 2}))
    summary = {
        **{"steps": 20, "seconds_run": 61.04, "seconds_compile": 8.0, "seeds_at_once": 1},
        "op_mass": {"Equalize": 0.1, row: 0.9 if rank == 1 else 0.05, "Color": 0.06, "Cutout": 0.07},
        "op_mass_initial": {row: 0.0625},
        "planted": [
            {
                **{"op": name, "value": value, "row": row, "rank": rank},
                **{"level": 0.8 if name == "Rotate" else None, "level_found": level_found},
                "steps_until_it_leads": step if rank == 1 else None,
            }
        ],
    }
    if recommended:
        summary["verdict"] = {"recommended": recommended}
    folder.write_summary(summary)
    folder.finish()


def fill(folder, tmp_path, results):
    """Records runs, (search, case, seed) to what became of them; returns the cells."""
    definition = load(folder)
    for number, (key, changes) in enumerate(results.items()):
        path = tmp_path / f"made_up_{number}"
        write_run(path, [*definition.recipes[key[:2]].arguments, f"--seed={key[2]}"], **changes)
        success_runs.record(definition, key, path)
    return definition, success_cells.cells(definition, success_runs.read(definition))


def test_committed_runs_give_the_committed_table():
    definition = load(COMMITTED)
    cells = success_cells.cells(definition, success_runs.read(definition))
    assert (COMMITTED / "table.md").read_text() == success_text.markdown(definition, cells)
    assert (COMMITTED / "table.csv").read_text() == success_text.to_csv(cells)


def test_cells_by_hand(folder, tmp_path):
    results = {
        ("dada", "Rotate-", 0): {"level_found": 0.7, "step": 8},
        ("dada", "Rotate-", 1): {"level_found": 0.6, "step": 5},
        ("dada", "Invert", 0): {"level_found": None},
        ("official", "Rotate-", 0): {"level_found": 0.1, "recommended": "found"},
        ("official", "Invert", 0): {"rank": 3, "level_found": None, "recommended": "none"},
        ("official", "Invert", 1): {"level_found": None, "step": 9},
    }
    definition, cells = fill(folder, tmp_path, results)
    text = success_text.markdown(definition, cells).splitlines()
    for line in (
        "| Rotate −24° | 2 of 2, step 6.5, level 0.65 (0.80) "
        "| 1 of 1 (1 not run), step 7, level –, kept 1 of 1 | – |",
        "| Invert | 1 of 1 (1 not run), step 7, level – | 1 of 2, step 9, level –, kept 0 of 1 | not run |",
        # Rotate alone has all seeds; its levels are .1 and .2 away. The official space draws the direction.
        "| all | 3 of 3 searches (100%), 1 of 1 ops (100%), 1 of 2 levels (50%) "
        "| 2 of 3 searches (67%), 0 of 1 ops (0%), 1 of 2 kept (50%) | not run |",
    ):
        assert line in text, line
    lines = success_text.to_csv(cells).splitlines()
    assert "dada,Rotate-,2,2,2,,6.5,0.8,0.65,0.9,0.0625,61" in lines
    assert "official,Invert,2,2,1,0,9,,,0.475,0.0625,61" in lines and "ddas,Invert,1,0,0,,,,,,," in lines
    draws = [success_figure.draw(definition, cells, tmp_path / f"{n}.png").read_bytes() for n in (0, 1)]
    assert draws[0] == draws[1]


def test_a_policy_without_the_op_has_missed_its_level(folder, tmp_path):
    results = {("dada", "Rotate-", 0): {"rank": 4, "level_found": None}}
    definition, cells = fill(folder, tmp_path, results)
    assert success_cells.totals([cells["dada", "Rotate-"]]).levels == (0, 1)
    text = success_text.markdown(definition, cells)
    assert "| Rotate −24° | 0 of 1 (1 not run), never, level none (0.80) |" in text


@pytest.fixture
def processes(monkeypatch):
    """Stands in for searches: notes their command lines, and finishes them unless told otherwise."""
    started, failing = [], []

    def start(line, **_):
        started.append(" ".join(line[2:]))
        if any(text in started[-1] for text in failing):
            return subprocess.CompletedProcess(line, 2)
        path = next(text.partition("=")[2] for text in line if text.startswith("--run_dir="))
        shutil.rmtree(path, ignore_errors=True)
        write_run(pathlib.Path(path), line[3:])
        return subprocess.CompletedProcess(line, 0)

    small_runs.stand_in(monkeypatch, start)
    return started, failing


def test_the_command_runs_what_is_missing(folder, tmp_path, processes, capsys):
    started, failing = processes
    run_dir = tmp_path / "runs"
    failing.append("official/Invert/seed_0")
    with pytest.raises(command_line.Interrupted, match=r"1 runs failed: .*runs/official/Invert/seed_0"):
        command(folder, f"--run_dir={run_dir}")
    # Seed by seed, op by op, search by search.
    places = [line.split("--run_dir=")[1].split()[0].removeprefix(f"{run_dir}/") for line in started]
    assert places == [
        *("dada/Rotate-/seed_0", "official/Rotate-/seed_0"),
        *("dada/Invert/seed_0", "official/Invert/seed_0", "ddas/Invert/seed_0"),
        *("dada/Rotate-/seed_1", "official/Rotate-/seed_1", "dada/Invert/seed_1", "official/Invert/seed_1"),
    ]
    assert started[0].startswith("experiments.search --model=wrn_10_1 --planted_op=Rotate:-24 ")
    assert "--resume" not in "".join(started) and "--seed=1" in started[5]
    assert "table.md: 8 of 9 runs" in capsys.readouterr().out and (folder / "table.png").exists()
    # What is recorded needs no folder any more, what was interrupted goes on.
    failing.clear()
    started.clear()
    shutil.rmtree(run_dir)
    interrupted = run_dir / "official" / "Invert" / "seed_0"
    write_run(interrupted, ["--model=wrn_10_1", "--preset=official", "--planted_op=Invert"])
    (interrupted / "summary.json").unlink()
    command(folder, f"--run_dir={run_dir}")
    assert len(started) == 1 and "official/Invert/seed_0" in started[0] and started[0].endswith("--resume")
    assert "table.md: 9 of 9 runs" in capsys.readouterr().out
    # What is finished in a folder and not recorded is not run again.
    lines = (folder / "runs.jsonl").read_text().splitlines()
    (folder / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    started.clear()
    command(folder, f"--run_dir={run_dir}")
    assert not started and (folder / "runs.jsonl").read_text().splitlines() == lines


def test_parts_of_the_table(folder, tmp_path, processes):
    started, _ = processes
    command(folder, f"--run_dir={tmp_path / 'runs'}", "--searches=ddas,dada", "--cases=Invert", "--seed=1")
    assert len(started) == 1 and "dada/Invert/seed_1" in started[0]  # DDAS has one seed
    command(folder, f"--run_dir={tmp_path / 'runs'}", "--searches=official", "--num_seeds=1")
    assert [line.split("/runs/")[1].split()[0] for line in started[1:]] == [
        *("official/Rotate-/seed_0", "official/Invert/seed_0")
    ]


def test_the_command_ends_in_time(folder, tmp_path, monkeypatch, capsys):
    started = []

    def start(line, timeout, **_):
        started.append(timeout)
        raise subprocess.TimeoutExpired(line, timeout)

    small_runs.stand_in(monkeypatch, start)
    command(folder, f"--run_dir={tmp_path / 'runs'}", "--seconds=60")
    text = capsys.readouterr().out
    assert started == [pytest.approx(45.0, abs=5.0)] and "0 of 9 runs" in text
    assert "the time is over; the same command goes on" in text


def test_a_record_says_what_became_of_the_op(folder, tmp_path):
    results = {("dada", "Rotate-", 1): {"level_found": 0.75, "recommended": "none"}}
    definition, _ = fill(folder, tmp_path, results)
    run = success_runs.read(definition)["dada", "Rotate-", 1]
    assert run.flags["planted_op"] == "Rotate:-24.0" and "seed" not in run.flags
    assert run[4:] == (
        *("Rotate-", 1, 0.9, 0.0625, [["Rotate-", 0.9], ["Equalize", 0.1], ["Cutout", 0.07]]),
        *(0.8, 0.75, 20, 7, 61.0, 8.0, "2 CPU cores", "none"),
    )


def test_runs_of_other_recipes_are_refused(folder, tmp_path, processes):
    path = tmp_path / "runs" / "dada" / "Invert" / "seed_0"
    write_run(path, ["--model=wrn_10_1", "--planted_op=Invert", "--epochs=9"])
    for state in ("finished", "interrupted"):
        with pytest.raises(ValueError, match="seed_0: a run with --epochs=9, expected 20; choose another"):
            command(folder, f"--run_dir={tmp_path / 'runs'}")
        assert not processes[0], state
        (path / "summary.json").unlink(missing_ok=True)
    shutil.rmtree(path)
    write_run(path, ["--model=wrn_10_1", "--planted_op=Invert"])
    contents = run_folder.read_contents(path)
    (path / "inputs.json").write_text(json.dumps({**contents, "training images": "others"}))
    with pytest.raises(ValueError, match=r"seed_0: training images: got .*, expected others, with which"):
        command(folder, f"--run_dir={tmp_path / 'runs'}")
    assert not processes[0]
    fill(folder, tmp_path, {("dada", "Rotate-", 0): {}})
    other = {"key": "Rotate-", "name": "Rotate −20°", "planted_op": "Rotate:-20"}
    for changes in ({"cases": [other]}, {"searches": [{**DEFINITION["searches"][0], "flags": []}]}):
        write(folder, **{"searches": DEFINITION["searches"][:1], **changes})
        with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: .*, seed 0: a run with --"):
            command(folder)
    write(folder, cases=[{"key": "Invert", "name": "Invert"}])
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: .*case Rotate-, seed 0: not in this table"):
        command(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": []}, "keys: got , expected one or more"),
        ({"cases": [{"key": "Rotate+", "name": ""}] * 2}, "keys: got Rotate[+], Rotate[+], expected"),
        ({"cases": [{"key": "../x", "name": ""}]}, "keys: got ../x, expected"),
        ({"cases": [{"key": "Invrt", "name": ""}]}, "--planted_op=Invrt: --planted_op: got 'Invrt'"),
        # The official space has no row for a direction; with a value the op can be planted there, too.
        ({"cases": [{"key": "Rotate+", "name": ""}]}, "Rotate[+] is not in the search space"),
        ({"searches": [{**DEFINITION["searches"][0], "cases": ["x"]}]}, "got the cases x, not of the table"),
        ({"searches": [{**DEFINITION["searches"][0], "num_seeds": 3}]}, "got num_seeds 3, expected 1 to 2"),
        ({"searches": [{**DEFINITION["searches"][0], "flags": ["--x=1"]}]}, "unknown flag --x"),
        ({"searches": [{"key": "dada", "name": ""}]}, "TypeError: .*'flags'"),
    ],
)
def test_bad_definitions_are_refused(tmp_path, changes, message):
    changes = {"searches": DEFINITION["searches"][:2], **changes}
    with pytest.raises(ValueError, match=f"table.json: .*{message}"):
        load(write(tmp_path / "table", **changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run_dir=x", "--searches=dda"], "--searches: got dda, expected some of dada, official, ddas"),
        (["--run_dir=x", "--cases=Invert,Flip"], "--cases: got Flip, expected some of Rotate-, Invert"),
        (["--run_dir=x", "--seed=1", "--num_seeds=2"], "expected some of the 2 of the table"),
        (["--run_dir=x", "--searches=ddas", "--seed=1"], "the table has no run of these --searches"),
        (["--cases=Invert"], "--cases has no effect without --run_dir"),
        (["more"], "got 2 arguments, expected one"),
    ],
)
def test_bad_flags_are_refused(folder, arguments, message, processes):
    with pytest.raises(ValueError, match=message):
        command(folder, *arguments)
    assert not processes[0] and not (folder / "table.md").exists()
    with pytest.raises(FileNotFoundError, match="no such file, expected the definition"):
        command(folder / "nothing")


def test_a_real_search_enters_the_table(tmp_path):
    small_runs.write_data_set(tmp_path / "tiny.npz", 80, 8)
    flags = [
        *(f"--dataset={tmp_path / 'tiny.npz'}", "--model=wrn_10_1", "--batch_size=16", "--max_steps=1"),
        *("--num_draws=2", "--crop_padding=0", "--cutout_length=0", "--noflip"),
        "--num_devices=1",
    ]
    searches = [{"key": "dada", "name": "DADA", "flags": flags}]
    folder = write(tmp_path / "table", searches=searches, num_seeds=1)
    command(folder, f"--run_dir={tmp_path / 'runs'}", "--cases=Rotate-")
    (run,) = success_runs.read(load(folder)).values()
    summary = run_folder.read_summary(tmp_path / "runs" / "dada" / "Rotate-" / "seed_0")
    assert run.row == "Rotate-" and run.level == pytest.approx(0.8) and run.steps == 1
    assert run.rank == summary["planted"][0]["rank"] and run.mass > 0 and run.seconds_compile > 0
    assert "of 1, " in (folder / "table.md").read_text()
