"""Hygiene that a reader relies on: imports point down, keys come first, nothing reads global state."""

import ast
import importlib
import inspect
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "dada").rglob("*.py"))
ALL = LIBRARY + sorted((ROOT / "experiments").rglob("*.py"))
# From the leaves upwards: a file imports only from earlier rows.
LAYERS = [
    {"relaxation", "estimators", "hypergradient", "layers", "color_ops", "spatial_ops", "train_state"}
    | {"crop_ops", "schedules", "image_keys", "config_checks"},
    {"op_table", "models", "policy_space", "ddas_gradient"},
    {"policy", "fast_path", "relaxed_augment", "dada_official", "ddas_candidates"},
    {"policy_table", "sampling", "dada_config", "baselines", "ddas_config", "ddas_schedule"}
    | {"deepaa_config"},
    {"augment"},
    {"search_input", "policy_training", "ddas_input", "deepaa_scores", "validation"},
    {"dada_search", "ddas_search", "deepaa_search"},
]
# Networks and steps, where the key is optional or belongs to a draw that comes with it.
KEY_IS_A_LATER_ARGUMENT = {
    "apply",
    "train_step",
    "latents",
    "drawn_latents",
    "relax_outputs",
    "policy_gradient",
}
LEAF_PACKAGES = {"jax", "numpy", "collections", "functools", "typing"}


def imported(path):
    """Modules imported anywhere in a file, as dotted names."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def siblings(path):
    return {name.split(".")[1] for name in imported(path) if name.startswith("dada.")}


def layer(name):
    return next(index for index, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = "models" if path.parent.name == "models" else path.stem
    if own == "__init__":
        assert not siblings(path)
        return
    for sibling in siblings(path) - {own}:
        assert layer(sibling) < layer(own), f"{path.name} imports {sibling}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_needs_jax_numpy_optax_and_chex_only(path):
    packages = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert packages <= {"jax", "numpy", "optax", "chex", "dada"}


@pytest.mark.parametrize("name", ["relaxation", "estimators", "hypergradient", "train_state", "schedules"])
def test_leaves_can_be_copied_alone(name):
    packages = {module.split(".")[0] for module in imported(ROOT / "dada" / f"{name}.py")}
    assert packages <= LEAF_PACKAGES


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_take_the_key_first_and_have_a_docstring(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("_") or function.__module__ != module.__name__:
            continue
        assert function.__doc__, f"{name} has no docstring"
        parameters = list(inspect.signature(function).parameters)
        assert "rng" not in parameters
        if "key" in parameters and name not in KEY_IS_A_LATER_ARGUMENT:
            assert parameters[0] == "key", f"{name}: {parameters}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_read_no_global_random_state(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert "np.random.seed" not in text and "jax.random.PRNGKey(" not in text
    if path in LIBRARY:
        assert "os.environ" not in text and "FLAGS" not in text
