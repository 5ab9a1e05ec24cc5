"""Several seeds as one answer: the files beside the seeds' folders, their figure, and who reads them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dada import ops, policies
from experiments import plot
from experiments.runs import command_line, run_folder
from experiments.summaries import seed_agreement

START = {"Rotate": 0.2, "Invert": 0.2, "Color": 0.1}


@pytest.fixture
def folders(tmp_path):
    """Three seeds: all find Rotate, one finds Color, the last applies all more often than at the start."""
    names = [row.name for row in ops.search_space("strength").rows]
    start = {name: START.get(name, 0.0) for name in names}
    found = {}
    for seed, (rotate, invert, color) in {3: (0.5, 0.1, 0.0), 4: (0.4, 0.0, 0.5), 5: (1.0, 0.8, 0.3)}.items():
        sequence = [("Rotate", rotate, 0.5), ("Invert", invert, 0.0), ("Color", color, 0.2)]
        found[seed] = run_folder.create(tmp_path / "run" / f"seed_{seed}", {"seed": seed})
        policies.save(found[seed].policy_path, policies.from_sequences("strength", [sequence], seed=seed))
        planted = {"planted": [{"op": "Rotate", "value": 9.0, "row": "Rotate"}]}
        found[seed].write_summary({"op_mass_initial": start, **planted})
    return tmp_path / "run", found


def test_agreement_by_hand(folders):
    path, found = folders
    summary = seed_agreement.write(path, found)
    assert list(summary["agreement"])[:3] == ["Rotate", "Invert", "Color"]
    assert len(summary["agreement"]) == len(policies.op_mass(policies.load(path / "policy.json")))
    rotate, invert, color = list(summary["agreement"].values())[:3]
    assert rotate["op_mass"] == [0.5, 0.4, 1.0]
    assert rotate["std"] == pytest.approx(np.sqrt((0.0178 + 0.0544 + 0.1344) / 2), rel=1e-3)
    assert summary["op_mass"]["Rotate"] == pytest.approx(rotate["mean"]) == pytest.approx(1.9 / 3)
    # Two fifths at the start: 5/6, 4/9 and 10/21; the third seed's Color, 0.3, is no more than a seventh.
    assert rotate["seeds_above_start"] == [3, 4, 5]
    assert color["seeds_above_start"] == [4] and invert["seeds_above_start"] == []
    table = seed_agreement.format_table(summary)
    assert "Rotate            0.6333  0.3215   in 3 of 3 seeds" in table
    assert table.endswith("\nBy chance alone an op is above its start in every other seed or so.")
    assert json.loads((path / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_plot_draws_the_figure_from_the_files(folders, capsys):
    path, found = folders
    seed_agreement.write(path, found)
    for folder in found.values():
        shutil.rmtree(folder.path)  # it needs the two files only
    plot.main(*command_line.parse(plot.define, [str(path)]))
    file = path / "figures" / "agreement.png"
    assert capsys.readouterr().out == f"{file}\n"
    image = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert image.shape[1] == 1600 and 0.03 < np.mean(np.any(image < 250, axis=-1)) < 0.9
    assert np.all(image[[0, -1]] > 240) and np.all(image[:, [0, -1]] > 240)  # nothing is cut off
    (path / "summary.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        plot.main(*command_line.parse(plot.define, [str(path)]))
