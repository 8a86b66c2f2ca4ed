"""Bytes of collectives, read from programs whose traffic is known, and from a text with a loop."""

import json
import subprocess
import sys

import pytest

from gramjax.core import collectives
from tests import simulated

CODE = """
import json, jax, jax.numpy as jnp
from functools import partial
from jax.sharding import PartitionSpec as P, NamedSharding
from gramjax.core import collectives

mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
run = partial(jax.shard_map, mesh=mesh, check_vma=False)
x = jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=NamedSharding(mesh, P("x")))
lax = jax.lax
def rounds(a):
    return lax.scan(lambda c, _: (lax.ppermute(c, "x", [(i, (i + 1) % 4) for i in range(4)]) * 2, None), a, length=5)[0]
cases = {
    "all-gather": run(lambda a: lax.all_gather(a, "x", tiled=True), in_specs=P("x"), out_specs=P()),
    "all-reduce": run(lambda a: lax.psum(a, "x"), in_specs=P("x"), out_specs=P()),
    "reduce-scatter": run(lambda a: lax.psum_scatter(a, "x", scatter_dimension=1, tiled=True), in_specs=P("x"),
                          out_specs=P(None, "x")),
    "all-to-all": run(lambda a: lax.all_to_all(a, "x", 1, 0, tiled=True), in_specs=P("x"), out_specs=P(None, "x")),
    "collective-permute": run(rounds, in_specs=P("x"), out_specs=P("x")),
}
texts = {name: jax.jit(f).lower(x).compile().as_text() for name, f in cases.items()}
print(json.dumps({name: collectives.bytes_by_kind(text) for name, text in texts.items()}))
"""

BYTES = {
    "all-gather": 8 * 256 * 4,
    "all-reduce": 2 * 256 * 4,
    "reduce-scatter": 2 * 256 * 4,
    "all-to-all": 2 * 256 * 4,
    "collective-permute": 5 * 2 * 256 * 4,
}
"""Each of four devices has 2 of 8 rows of 256 numbers; the permutation runs five times in a loop."""


@pytest.fixture(scope="module")
def counted():
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, env=simulated.environment(4))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", collectives.KINDS[:-1])
def test_bytes_of_each_kind(counted, kind):
    assert counted[kind] == {other: BYTES[kind] * (other == kind) for other in collectives.KINDS}


TPU = """HloModule jit_step, is_scheduled=true

%body.1 (p: (f32[4,8], u32[])) -> (f32[4,8], u32[]) {
  %p = (f32[4,8]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) parameter(0)
  %g = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=0
  %fusion.1 = f32[4,8]{1,0} fusion(%g), kind=kCustom, calls=%async_fusion
  %fusion.2 = f32[4,8]{1,0} fusion(%g), kind=kCustom, calls=%async_fusion.clone
  %cp = (f32[4,8]{1,0:T(8,128)}, f32[4,8]{1,0:T(8,128)}, u32[]{:S(2)}) collective-permute-start(%g), channel_id=7
  %cpd = f32[4,8]{1,0} collective-permute-done(%cp)
  %two = u32[]{:T(128)} constant(2)
  %j = u32[]{:T(128)} get-tuple-element(%p), index=1
  %next = u32[]{:T(128)} add(%j, %two), metadata={op_name="next"}
  ROOT %t = (f32[4,8]{1,0}, /*index=1*/u32[]) tuple(%cpd, /*index=1*/%next)
}

%cond.1 (q: (f32[4,8], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(12), metadata={op_name="limit"}
  %q = (f32[4,8]{1,0}, u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%async_fusion (a: f32[4,8]) -> f32[16,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %ag = bf16[16,8]{1,0} all-gather(%a), channel_id=9, dimensions={0}
}

%async_fusion.clone (a: f32[4,8]) -> f32[16,8] {
  %a.1 = f32[4,8]{1,0} parameter(0)
  ROOT %ag.1 = bf16[16,8]{1,0} all-gather(%a.1), channel_id=9, dimensions={0}
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0)
  %w = (f32[4,8]{1,0:T(8,128)S(1)}, /*index=1*/u32[]{:T(128)}) while(%x), condition=%cond.1, body=%body.1
  %whole = f32[32,8]{1,0} broadcast(%x)
  ROOT %rs = f32[4,8]{1,0} reduce-scatter(%whole), channel_id=3, dimensions={0}
}
"""


def test_text_of_a_tpu_program():
    """A loop without a known count runs as often as its condition and step say; one in two fusions counts once."""
    found = collectives.bytes_by_kind(TPU)
    assert found["collective-permute"] == 6 * 4 * 8 * 4
    assert found["all-gather"] == 6 * 16 * 8 * 2
    assert found["reduce-scatter"] == 32 * 8 * 4  # what it takes from a device
    assert found["all-reduce"] == found["all-to-all"] == 0


def test_collectives_of_shard_map_share_a_channel_and_count_each():
    named = TPU.replace("channel_id=9", 'channel_id=9, metadata={op_name="jit(f)/shard_map/all_gather"}')
    assert collectives.bytes_by_kind(named)["all-gather"] == 2 * collectives.bytes_by_kind(TPU)["all-gather"]


def test_pieces_of_one_collective_of_shard_map_are_named_by_their_chain():
    """Begun before a loop and cut up over it, it counts once."""
    attributes = 'channel_id=9, frontend_attributes={chain_id="4"}, metadata={op_name="shard_map"}'
    named = TPU.replace("channel_id=9", attributes)
    outside = named.replace("broadcast(%x)", "fusion(%x), kind=kCustom, calls=%async_fusion")
    assert collectives.bytes_by_kind(outside)["all-gather"] == 16 * 8 * 2
