"""Settings of the whole test run: eight CPU devices, and absl flags readable without a command line."""

import os

# Must stand before the first import of jax: the device count is fixed when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from absl import flags


def pytest_configure(config):
    del config
    flags.FLAGS.mark_as_parsed()
