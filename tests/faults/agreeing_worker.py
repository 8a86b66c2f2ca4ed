"""Two processes with two devices each that differ in one thing after the other; prints what each check said.

agreeing_worker.py FOLDER: what it finds is printed as one JSON object. FOLDER is in use by the parent.
"""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gramjax.checkpoint.lock import RunLock
from gramjax.core import config as configs
from gramjax.core import processes, runtime, sharding
from gramjax.core.config import MeshSection
from gramjax.core.errors import GramjaxError
from gramjax.data import pipeline
from gramjax.data.text import example
from gramjax.training import replicas


def said(action) -> str:
    """The error of an action, or ""."""
    try:
        action()
    except GramjaxError as error:
        return f"{error.exit_code} {error}"
    return ""


def source(rows: int, seed: int = 0) -> pipeline.Pipeline:
    examples = pipeline.encode_rows(
        [{"id": str(i)} for i in range(rows)], lambda row: example(([1, 2, int(row["id"]) + 3], [0.0, 1.0, 1.0]))
    )
    section = configs.DataSection(max_length=8)
    return pipeline.Pipeline(examples, section, 4, seed, 1.0, 0, number, jax.process_count(), 0, [])


def other_code() -> dict[str, str]:
    return {**identity(), "jax": "0.0.1"} if number == 1 else identity()


def state_with(changed: dict[int, float]) -> dict:
    """A state of one replicated and one spread array; the device with a number in `changed` holds another weight."""
    weight = np.arange(8, dtype=np.float32)
    buffers = []
    for device in jax.local_devices():
        own = weight.copy()
        own[3] += changed.get(device.id, 0.0)
        buffers.append(jax.device_put(own, device))
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("fsdp"))
    copied = jax.make_array_from_single_device_arrays(weight.shape, everywhere, buffers)
    split = jax.make_array_from_callback(weight.shape, spread, weight.__getitem__)
    count = jax.make_array_from_callback((), everywhere, lambda index: jnp.int32(7))
    return {"params": {"copied": copied, "split": split}, "step": count}


runtime.start()
number, identity = jax.process_index(), processes.identity
mesh = sharding.make_mesh(MeshSection(data=2, fsdp=2))
devices = [d.id for d in mesh.devices.flat]
found = {"uneven": said(lambda: processes.agree("data", source(10 - number).fingerprint()))}
found["seed"] = said(lambda: processes.agree("data", source(10, seed=number).fingerprint()))
found["same"] = said(lambda: processes.agree("data", source(10).fingerprint()))
found["steps"] = source(10).steps
processes.identity = other_code
found["code"] = said(processes.agree_on_code)
processes.identity = identity
found["same code"] = said(processes.agree_on_code)
found["devices"] = devices
found["whole"] = said(lambda: replicas.check(10, state_with({})))
found["odd"] = said(lambda: replicas.check(10, state_with({devices[3]: 1e-6})))
found["even"] = said(lambda: replicas.check(20, state_with({devices[2]: 1.0, devices[3]: 1.0})))
found["lock"] = said(lambda: processes.by_the_first(lambda: RunLock(sys.argv[1]).__enter__()))
print("found " + json.dumps(found), flush=True)
os._exit(0)
