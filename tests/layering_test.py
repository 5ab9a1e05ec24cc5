"""Hygiene that a reader relies on: imports point down, keys come first, nothing reads global state."""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "dada").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
LEAVES = ("dada.ops", "dada.gradients", "dada.models", "dada.detection", "dada.policies", "dada.augment")
# What each room imports from, besides itself; what no room holds is a command.
_LOWER = ("ops", "gradients", "models", "detection", "policies", "augment", "training", "checks")
_BELOW_SEARCHES = [f"dada.{room}" for room in _LOWER]
_METHOD = [*_BELOW_SEARCHES, "dada.searches.losses"]
_RUNS = ["experiments.data", "experiments.runs"]
_METHODS = [*_RUNS, "experiments.methods"]
ROOMS = {
    "dada": [],
    "dada.checks": [],
    "dada.ops": [],
    "dada.gradients": [],
    "dada.models": [],
    "dada.detection": [],
    "dada.policies": ["dada.ops"],
    "dada.augment": ["dada.ops", "dada.policies"],
    "dada.training": ["dada.ops", "dada.models", "dada.policies", "dada.augment", "dada.checks"],
    "dada.searches": [],
    "dada.searches.losses": _BELOW_SEARCHES,
    "dada.searches.dada": _METHOD,
    "dada.searches.dada_official": [*_METHOD, "dada.searches.dada"],
    "dada.searches.ddas": _METHOD,
    "dada.searches.deepaa": _METHOD,
    "experiments.data": [],
    "experiments.runs": ["experiments.data"],
    "experiments.methods": _RUNS,
    "experiments.summaries": _METHODS,
    "experiments.measure": _METHODS,
    "experiments.figures": [*_METHODS, "experiments.summaries", "experiments.measure"],
}
ROOMS["experiments"] = [room for room in ROOMS if room.startswith("experiments.")]
# Networks and steps, where the key is optional or belongs to a draw that comes with it.
KEY_IS_A_LATER_ARGUMENT = {
    "apply",
    "classification_losses",
    "of_batch",
    "train_step",
    "latents",
    "drawn_latents",
    "relax_outputs",
    "policy_gradient",
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, source=None):
    """(dotted name, whether it was written relative) of all that a file imports, anywhere in it."""
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((f"{base}.{alias.name}", node.level > 0) for alias in node.names)


def room_of(module):
    """The innermost room that holds a module."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS), None)


def upward_imports(path, source=None):
    own = room_of(module_of(path))
    allowed = {own, *ROOMS[own]}
    return [
        name
        for name, _ in imports(path, source)
        if room_of(name) not in allowed
        and name.split(".")[0] in ("dada", "experiments")
        and not (own.startswith("experiments") and name.startswith("dada"))
    ]


def test_a_room_imports_only_from_those_below():
    assert {str(path): found for path in FILES if (found := upward_imports(path))} == {}


def test_an_upward_import_is_found():
    for file, line in (
        ("dada/ops/color.py", "from .. import policies"),
        ("dada/ops/color.py", "from ..augment.base import normalize"),
        ("dada/gradients/bilevel.py", "from .. import ops"),
        ("dada/models/layers.py", "import dada.training.sgd"),
        ("dada/policies/policy.py", "from ..augment import sampling"),
        ("dada/augment/base.py", "from .. import checks"),
        ("dada/augment/__init__.py", "from ..training import sgd"),
        ("dada/training/sgd.py", "def f():\n    from ..gradients import bilevel"),
        ("dada/searches/losses.py", "from .dada import space"),
        ("dada/searches/ddas/search.py", "from ..dada import space"),
        ("dada/searches/dada/search.py", "from ..dada_official import config"),
        ("dada/searches/dada/search.py", "from experiments.data import datasets"),
        ("experiments/data/datasets.py", "from experiments.runs import run_folder"),
        ("experiments/runs/run_folder.py", "from ..methods import search_run"),
        ("experiments/summaries/table_text.py", "from experiments.figures import figure_style"),
        ("experiments/methods/search_run.py", "from experiments import train"),
    ):
        assert upward_imports(ROOT / file, line), (file, line)
    for file, line in (
        ("dada/searches/dada_official/search.py", "from ..dada import space\nfrom ..losses import f"),
        ("dada/training/sgd.py", "import jax\nfrom ..augment import base\nfrom . import schedules"),
        ("experiments/data/datasets.py", "from dada.searches import dada\nfrom experiments.data import x"),
        ("experiments/train.py", "from experiments.figures import figure_style"),
    ):
        assert not upward_imports(ROOT / file, line), (file, line)


def test_the_library_imports_itself_relatively_and_four_packages():
    for path in FILES:
        own = room_of(module_of(path))
        if not own.startswith("dada"):
            continue
        packages = {name.split(".")[0] for name, is_relative in imports(path) if not is_relative}
        known = {"jax", "numpy"} if own in LEAVES else {"jax", "numpy", "optax", "chex"}
        assert packages - set(sys.stdlib_module_names) <= known, path


def test_files_that_can_be_copied_alone():
    for name in (
        *("gradients/relaxation", "gradients/estimators", "gradients/bilevel"),
        *("training/sgd", "training/schedules"),
    ):
        path = ROOT / "dada" / f"{name}.py"
        packages = {module.split(".")[0] for module, _ in imports(path)} - set(sys.stdlib_module_names)
        assert packages <= {"jax", "numpy"}, path


def test_public_functions_take_the_key_first_and_have_a_docstring():
    for path in FILES:
        if path.parts[len(ROOT.parts)] != "dada":
            continue
        module = importlib.import_module(module_of(path))
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("_") or function.__module__ != module.__name__:
                continue
            where = f"{module.__name__}.{name}"
            assert function.__doc__, where
            parameters = list(inspect.signature(function).parameters)
            assert "rng" not in parameters, where
            if "key" in parameters and name not in KEY_IS_A_LATER_ARGUMENT:
                assert parameters[0] == "key", where


def test_nothing_reads_global_random_state():
    for path in FILES:
        text = path.read_text()
        words = ["np.random.seed", "jax.random.PRNGKey("]
        if path.parts[len(ROOT.parts)] == "dada":
            words += ["os.environ", "FLAGS"]
        assert not [word for word in words if word in text], path
