"""What `pip install .` takes: every folder of the library, the published policies, version and licence."""

import fnmatch
import pathlib
import re
import tomllib

import dada

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = SETTINGS["project"], SETTINGS["tool"]["setuptools"]


def lower_bounds(requirements):
    """Name to the first version condition, for example {"jax": ">=0.8"}."""
    return dict(re.match(r"([\w-]+)([=>]=[\d.]+)", line).groups() for line in requirements)


def test_every_folder_of_the_library_is_a_package():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "dada").rglob("*.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted(".".join(folder.parts) for folder in folders)
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


def test_every_file_that_is_no_module_is_package_data():
    others = {
        path.relative_to(ROOT)
        for path in (ROOT / "dada").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    found = {
        path
        for path in others
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        if fnmatch.fnmatchcase(path.as_posix(), f"{package.replace('.', '/')}/{pattern}")
    }
    assert found == others
    assert any(path.name == "dada_cifar10.json" for path in found)


def test_version_and_licence_are_declared():
    assert PROJECT["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "dada.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", dada.__version__)
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert all((ROOT / name).exists() for name in PROJECT["license-files"])


def test_lower_bounds_are_those_that_were_tried():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    tried = lower_bounds(line for line in lines if line and not line.startswith("#"))
    declared = [*PROJECT["dependencies"]]
    for group in PROJECT["optional-dependencies"].values():
        declared += group
    assert lower_bounds(declared) == tried
