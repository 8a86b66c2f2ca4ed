"""The evaluation over a mesh of simulated devices gives the numbers of one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, sys.argv[1])
import dataclasses
from gramjax.core import plugins, sharding, spec
from gramjax.core.config import MeshSection
from gramjax.evals import preference
from gramjax.models import model as models
from test_preference import Letters, rows

decoder = plugins.load("models", "decoder")
config = decoder.Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2,
                        head_dim=8, init_scale=0.3)
single = models.build("decoder", config)
mesh = sharding.make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
spread = models.build("decoder", config, mesh)
params = spec.init_params(single.specs(), jax.random.key(0))
placed = jax.device_put(params, sharding.shardings(single.specs(), mesh))
out = []
for network, weights in ((single, single.pack(params)), (spread, jax.jit(spread.pack)(placed))):
    written = []
    settings = preference.Config(batch_size=6, buckets=(128,), bootstrap_samples=10)
    metrics = dict(preference.evaluate(network, weights, Letters(), rows(9), settings, written.append))
    out.append([metrics["accuracy"], [row["margin"] for row in written]])
out.append(str(weights["embed"].sharding.spec))
print(json.dumps(out))
"""


def test_a_mesh_of_eight_devices_gives_the_scores_of_one():
    """Batch of 6 sequences over 4 shards: rounded up to 8; weights spread over all three axes."""
    here = str(Path(__file__).parent)
    result = subprocess.run([sys.executable, "-c", WORKER, here], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (accuracy, margins), (mesh_accuracy, mesh_margins), placed = json.loads(result.stdout.splitlines()[-1])
    assert mesh_accuracy == accuracy and len(margins) == 9
    assert mesh_margins == pytest.approx(margins, abs=1e-5)
    assert "fsdp" in placed and "tensor" in placed  # the weights really were spread
