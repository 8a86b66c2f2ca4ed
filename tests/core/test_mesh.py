"""Which device stands where in the mesh, how batches lie on it, and what is said when it cannot be made."""

import dataclasses
import itertools

import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from gramjax.core import checks, sharding
from gramjax.core.config import MeshSection, TrainSection
from gramjax.core.errors import UserError
from gramjax.training import setup


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that is not there, with what JAX asks a TPU for."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def slices(count, side=4):
    """Chips of square slices, in an order that is not theirs; four to a host."""
    places = list(itertools.product(range(count), range(side), range(side)))
    chips = [
        Chip(i, (x, y, 0), s * side * side // 4 + (x // 2) * side // 2 + y // 2, s)
        for i, (s, x, y) in enumerate(places)
    ]
    return [chips[i] for i in np.random.default_rng(0).permutation(len(chips))]


def test_data_spans_slices_and_nothing_else_does():
    section = MeshSection(data=4, fsdp=-1, context=2, tensor=2, slices=2)
    mesh = sharding.make_mesh(section, slices(2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 2, "tensor": 2}
    by_data = [{device.slice_index for device in part.flat} for part in mesh.devices]
    assert by_data == [{0}, {0}, {1}, {1}]
    assert len({device.id for device in mesh.devices.flat}) == 32


def test_tensor_neighbours_are_neighbours_in_the_torus():
    """However the devices are listed: a ring of four along `tensor` has hops of one."""
    mesh = sharding.make_mesh(MeshSection(fsdp=4, tensor=4), slices(1))
    for ring in mesh.devices.reshape(-1, 4):
        for a, b in zip(ring, np.roll(ring, -1), strict=True):
            hops = [min(abs(x - y), 4 - abs(x - y)) for x, y in zip(a.coords, b.coords, strict=True)]
            assert sum(hops) == 1, ring


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (MeshSection(data=3), r"needs 30 devices, found 32 \(tpu\)"),
        (MeshSection(fsdp=32), r"config.mesh.slices=1, but the 32 devices lie in 2 slices"),
        (MeshSection(data=4, slices=4), r"config.mesh.slices=4, but the 32 devices lie in 2 slices"),
        (MeshSection(data=1, slices=2), r"config.mesh.data=1 spans config.mesh.slices=2"),
        (MeshSection(data=-1, fsdp=-1), "one at most -1"),
    ],
)
def test_what_cannot_be_made_is_said(section, words):
    with pytest.raises(UserError, match=words):
        sharding.make_mesh(section, slices(2))


def test_slices_are_looked_at_before_there_are_devices():
    config = {"mesh": {"data": 3, "fsdp": -1, "slices": 2}}
    assert any("config.mesh.data is 3 but spans" in problem for problem in checks.problems(config))
    assert not checks.problems({"mesh": {"data": 4, "fsdp": -1, "slices": 2}})


def mesh_of(processes, **sizes):
    """A mesh whose devices belong to processes in equal, consecutive parts."""
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    count = int(np.prod(shape))
    chips = [Chip(i, (i, 0, 0), i * processes // count, platform="cpu") for i in range(count)]
    return Mesh(np.asarray(chips, object).reshape(shape), sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def test_processes_that_hold_the_same_rows_give_the_same_rows():
    for sizes, want in (
        ({"fsdp": 4}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ({"fsdp": 2, "context": 4}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({"data": 2, "tensor": 8}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({"tensor": 4}, [(0, 1)] * 4),
    ):
        mesh = mesh_of(4, **sizes)
        assert [sharding.share_of_rows(mesh, process) for process in range(4)] == want, sizes


def test_rows_and_lengths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="a part of the rows of another"):
        sharding.share_of_rows(mesh_of(2, data=3, tensor=2), 0)
    with pytest.raises(UserError, match="config.data.max_length=63 does not divide over config.mesh.context=2"):
        setup.check_batch(TrainSection(batch_size=8), mesh_of(1, data=2, context=2), 63)
    setup.check_batch(TrainSection(batch_size=8), mesh_of(1, data=2, context=2), 64)


def test_batches_are_cut_along_rows_and_length():
    mesh = mesh_of(1, data=2, context=2)
    batch = {"tokens": np.zeros((4, 2, 6)), "ends": np.zeros((4, 2, 1)), "weight": np.zeros(4)}
    found = {name: place.spec for name, place in sharding.batch_shardings(batch, mesh).items()}
    rows = ("data", "fsdp")
    assert found["tokens"] == PartitionSpec(rows, None, "context")
    assert found["ends"] == PartitionSpec(rows, None, None) and found["weight"] == PartitionSpec(rows)
    odd = sharding.batch_shardings({"tokens": np.zeros((4, 7))}, mesh)["tokens"].spec
    assert odd == PartitionSpec(rows, None)
