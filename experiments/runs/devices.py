"""One batch divided over several devices, of one machine or of several.

Every device holds the state, the key and the data set whole, takes its own part of every batch and averages
with the others, so that all of them end a step with the same state: that of one device, but for rounding.
A run may be resumed on another number of devices.

Several processes (--coordinator_address, --num_processes, --process_id) run the same program with the same
flags and find their run folder in one file system. Process 0 writes it; all take part in checkpoints.

`mesh` is None for one device, for which no function here does anything.
"""

import collections
import contextlib
import functools
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_AXIS = "devices"
WHOLE = jax.P()  # of arrays that are on every device
DIVIDED = jax.P(_AXIS)  # of arrays with a row for each image of a batch
_MARGIN = 60  # seconds


def start(address: str | None, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    """Joins the other processes of the run, if there are any; to be called before anything is computed.

    `address` is HOST:PORT of process 0, `process_id` counts from 0; all are None for a run of one process.
    If the others do not come within `timeout` seconds, this process ends with one line and exit code 2.

    Raises:
      ValueError: arguments that are missing or wrong. OSError: the address cannot be used.
    """
    given = {"coordinator_address": address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        names = ", ".join(f"--{name}" for name in given)
        raise ValueError(f"{names} are given together or not at all; missing: --{', --'.join(missing)}")
    if not re.fullmatch(r".+:\d{1,5}", address) or not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError(f"--coordinator_address: got {address!r}, expected HOST:PORT of process 0")
    if process_id >= num_processes:
        raise ValueError(f"--process_id={process_id}: expected less than {num_processes}")
    try:
        if process_id == 0:  # a port in use would end the process without a message
            with socket.create_server(("", int(address.rpartition(":")[2]))):
                pass
        with _waiting(address, num_processes, process_id, timeout):
            # Longer than we wait ourselves: JAX ends a process with forty lines of native code.
            jax.distributed.initialize(
                address, num_processes, process_id, initialization_timeout=timeout + _MARGIN
            )
    except (OSError, RuntimeError) as error:
        raise OSError(f"--coordinator_address={address}: {error}") from error


@contextlib.contextmanager
def _waiting(address, num_processes, process_id, timeout):
    """Says for whom this process waits, and ends it if they have not come in time."""
    if num_processes == 1:
        yield
        return
    whom = f"{num_processes - 1} more" if process_id == 0 else "process 0"
    print(f"process {process_id} waits for {whom} at {address}", file=sys.stderr, flush=True)

    def give_up():
        expected = f"expected all {num_processes} processes at {address} within {timeout} s"
        print(f"error: --coordinator_timeout: {expected}", file=sys.stderr, flush=True)
        os._exit(2)  # the main thread is in native code

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def mesh(num_devices: int | None = None) -> jax.sharding.Mesh | None:
    """The devices that share a batch, as many of each process; None for one.

    `num_devices` is that of all processes together; None for all. ValueError: there are not so many devices.
    """
    of_process = collections.defaultdict(list)
    for device in jax.devices():
        of_process[device.process_index].append(device)
    share = None
    if num_devices is not None:
        share, rest = divmod(num_devices, len(of_process))
        if rest or share > min(map(len, of_process.values())):
            owners = f"{len(of_process)} processes with " if len(of_process) > 1 else ""
            counts = " and ".join(str(len(local)) for local in of_process.values())
            raise ValueError(f"--num_devices={num_devices}: there are {owners}{counts} devices")
    # Those of a process side by side, as `own_rows` needs them.
    chosen = [device for local in of_process.values() for device in local[:share]]
    if len(chosen) == 1:
        return None
    return jax.sharding.Mesh(np.array(chosen), (_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def check_batch(flag: str, size: int, mesh: jax.sharding.Mesh | None) -> None:
    """Refuses the batch size of a flag if the devices cannot share it equally."""
    if mesh is not None and size % mesh.size:
        raise ValueError(
            f"--{flag}={size}: expected a multiple of the {mesh.size} devices that share it; "
            "--num_devices takes fewer"
        )


def axis_name(mesh: jax.sharding.Mesh | None) -> str | None:
    """Name of the mapped axis inside `divided`."""
    return None if mesh is None else _AXIS


def divided(function: Callable, mesh: jax.sharding.Mesh | None, in_specs: Any = WHOLE) -> Callable:
    """The function on every device, with whole arguments; its results must be the same on all devices.

    `in_specs` says which arguments, or trees in them, are DIVIDED.
    """
    if mesh is None:
        return function
    # Without check_vma gradients are those of a device's own part, as the steps expect.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=WHOLE, check_vma=False)


def own_rows(count: int, mesh: jax.sharding.Mesh | None) -> slice:
    """The rows of DIVIDED arrays of `count` rows that lie on devices of this process."""
    if mesh is None:
        return slice(0, count)
    parts = jax.NamedSharding(mesh, DIVIDED).addressable_devices_indices_map((count,)).values()
    return slice(min(part[0].start or 0 for part in parts), max(part[0].stop or count for part in parts))


def divide(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """DIVIDED arrays on the devices from this process's rows of them; waits until they are there."""
    if mesh is None:
        return jax.block_until_ready(jax.device_put(tree))
    put = functools.partial(jax.make_array_from_process_local_data, jax.NamedSharding(mesh, DIVIDED))
    return jax.block_until_ready(jax.tree.map(put, tree))


def replicate(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """A tree that all processes have alike, whole on every device."""
    if mesh is None:
        return tree
    sharding = jax.NamedSharding(mesh, jax.P())

    def put(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def local(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """The copy of a replicated tree on the first device of this process."""
    return tree if mesh is None else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def is_primary() -> bool:
    """Whether this process writes files and talks to the user."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
