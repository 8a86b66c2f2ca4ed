"""One process with 8 simulated devices: saved sharded, restored on other meshes, imported onto shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated

WORKER = '''
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from small_models import FAMILIES, random_params
from gramjax.checkpoint import huggingface, shards, state
from gramjax.checkpoint.checksum import checksums
from gramjax.checkpoint.source import open_source
from gramjax.core import sharding, spec, tree
from gramjax.core.config import MeshSection
from gramjax.models import decoder

work = Path(sys.argv[1])
config = FAMILIES["llama"]
specs = decoder.specs(config)
host = random_params(config)
meshes = {
    8: sharding.make_mesh(MeshSection(data=1, fsdp=4, tensor=2)),
    2: sharding.make_mesh(MeshSection(data=1, fsdp=2, tensor=1), jax.devices()[:2]),
    1: sharding.make_mesh(MeshSection(data=1, fsdp=1, tensor=1), jax.devices()[:1]),
}
places = {n: sharding.shardings(specs, mesh) for n, mesh in meshes.items()}
out = {}

def same(tree_):
    pairs = zip(jax.tree.leaves(tree_), jax.tree.leaves(host))
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)

# state: saved on 8, restored on 8, 2, 1 and by the parameters alone
params = jax.device_put(host, places[8])
with state.Checkpoints(work / "run") as saved:
    saved.save(1, {"params": params, "step": jnp.int32(1)}, {}, {"model": {}, "mesh": {"fsdp": 4}})
    saved.wait()
    for n in meshes:
        ab = {"params": spec.abstract(specs, jnp.float32, places[n]), "step": jax.ShapeDtypeStruct((), jnp.int32)}
        r = saved.restore(1, ab, expect={"mesh": {"fsdp": n}})
        q = r.state["params"]["layers"]["001"]["attn"]["q"]
        out[f"restored on {n}"] = same(r.state["params"]) and q.sharding == places[n]["layers"]["001"]["attn"]["q"]
    out["notes"] = saved.notes
half = state.restore_params(work / "run", spec.abstract(specs, jnp.bfloat16, places[2]))
out["params in bfloat16"] = half["embed"].dtype == jnp.bfloat16 and len(half["embed"].sharding.device_set) == 2

# checksums do not depend on the mesh
flat = [checksums(tree.flatten(jax.device_put(host, places[n]))) for n in meshes]
out["checksums"] = flat[0] == flat[1] == flat[2]

# import straight onto shards: no device, and no single read, ever holds a whole matrix
huggingface.save(work / "hf", host, config)
largest = 0
plain = shards.reader

import contextlib
@contextlib.contextmanager
def watched(found):
    with plain(found) as read:
        def counted(name, index):
            global largest
            block = read(name, index)
            if block.ndim == 2:
                largest = max(largest, block.size / np.prod(found[name].shape))
            return block
        yield counted

shards.reader = watched
loaded = open_source(work / "hf").load(specs, config, places[8])
out["imported"] = same(loaded.params)
out["largest read"] = largest
q = loaded.params["layers"]["000"]["attn"]["q"]
out["q shard"] = list(q.addressable_shards[0].data.shape)

huggingface.save(work / "again", loaded.params, config)
first, again = ((work / name / "model.safetensors").read_bytes() for name in ("hf", "again"))
out["export of shards"] = first == again

print(json.dumps(out))
'''


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    work = tmp_path_factory.mktemp("meshes")
    command = [sys.executable, "-c", WORKER, str(work), str(Path(__file__).parent)]
    done = subprocess.run(command, env=simulated.environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return json.loads(lines[-1])


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_saved_on_eight_devices_restored_on_fewer(result, devices):
    assert result[f"restored on {devices}"]


def test_the_change_of_mesh_is_said(result):
    assert "mesh.fsdp=4, config has 8: restoring with the new mesh" in result["notes"][0]


def test_parameters_alone_go_to_another_mesh_and_dtype(result):
    assert result["params in bfloat16"]


def test_checksums_do_not_depend_on_the_mesh(result):
    assert result["checksums"]


def test_import_reads_shards_only(result):
    assert result["imported"] and result["export of shards"]
    assert result["q shard"] == [4, 2, 4]
    assert result["largest read"] <= 0.5  # k and v have 2 heads over 2 tensor shards, others are cut further
