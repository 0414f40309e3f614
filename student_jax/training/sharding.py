"""Devices and processes: where the batch and the parameters live.

A mesh has two axes. The batch is split over both; parameters and optimiser are copied along "data"
and, where "fsdp" is longer than 1, split along it, to be gathered layer by layer when they are used
(fully sharded data parallelism: Rajbhandari et al., "ZeRO", 2020, stage 3). XLA derives all
communication from these placements, so that sums and means over the batch, batch norm's
statistics among them, are over the batches of all devices.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from triplets import InputError, one_line

MIN_SHARDED_SIZE = 2**14
"""Entries below which an array is copied to each device: gathering it would cost more."""


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the other processes of this run, before JAX is used for anything else.

    Args:
        coordinator: HOST:PORT of process 0, None for a single process, or "auto" to ask the
            launcher: SLURM, Cloud TPU or Open MPI.
        num_processes, process_id: needed with HOST:PORT.

    Raises:
        InputError: the launcher is unknown, or the other processes do not answer.
    """
    if coordinator is None:
        return
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--coordinator {coordinator} does not work: {one_line(error)}."
        ) from error


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes.

    Args:
        fsdp: devices over which each copy of the parameters is spread.

    Raises:
        InputError: the number of devices is not a multiple of that.
    """
    count = jax.device_count()
    if count % fsdp:
        raise InputError(f"--fsdp {fsdp} does not divide the {count} devices.")
    return jax.make_mesh(
        (count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def placed(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`jax.ShapeDtypeStruct`s with a sharding each: the longest axis that can be is split along
    "fsdp"."""
    ways = mesh.shape["fsdp"]

    def with_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, length in enumerate(x.shape) if length % ways == 0]
        if ways == 1 or x.size < MIN_SHARDED_SIZE or not axes:
            spec = PartitionSpec()
        else:
            split = max(axes, key=lambda axis: x.shape[axis])
            spec = PartitionSpec(*[None] * split, "fsdp")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(with_sharding, tree)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch to its devices, as one global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def shard_whole_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has whole, to the devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; each must ask at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(flag).any())


def wait_for_all(purpose: str) -> None:
    """Go on only when every process has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(purpose)
