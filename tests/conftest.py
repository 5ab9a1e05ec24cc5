"""Settings of the whole test run: eight CPU devices, quick compilation, one folder of compiled programs."""

import gc
import os
import pathlib

# Must stand before the first import of jax: the device count is fixed when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # else every operation notes its Python stack

import jax
import pytest

gc.set_threshold(200_000, 50, 1000)  # tracing makes millions of small objects that live on

# Where pixels are compared, the compiler must do all that it does to users.
PIXELS = pathlib.Path(__file__).parent / "pixels"


def pytest_configure(config):
    """Turns off what compiles longest, in a process that is given files with other tests only."""
    paths = [pathlib.Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if all(path.suffix == ".py" and path.parent != PIXELS for path in paths):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Keeps every compiled program for later tests and for the processes that they start."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(compiled_programs, request):
    """Compiles without optimisation, in a third of the time, here and in processes that a test starts."""
    is_quick = request.path.parent != PIXELS
    jax.config.update("jax_disable_most_optimizations", is_quick)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(is_quick))
    jax.clear_caches()
