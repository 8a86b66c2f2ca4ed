"""A plan is made of the program that a job runs: the same text, the same shapes, the same bytes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from gramjax.core import flags, flops, presets, sharding, tree
from gramjax.core.errors import UserError
from gramjax.core.phases import phases
from gramjax.models import decoder
from gramjax.training import budget, planning, setup

ARCH = decoder.Config(
    vocab_size=512, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_word_embeddings=False,
)  # fmt: skip


def config_of(use: str, arch: decoder.Config = ARCH):
    config = presets.preset(arch, use)
    config.data.max_length = 32
    if config.job == "train":
        config.train.batch_size, config.train.logit_chunk = 4, 64
        config.train.steps = 1000
    return config


def rows_file(folder, use):
    path = folder / "rows.jsonl"
    row = '{"prompt": "a", "chosen": "b", "rejected": "c"}' if use == "bradley_terry" else '{"text": "a b"}'
    path.write_text(f"{row}\n" * 8)
    return str(path)


@pytest.mark.parametrize("use", ["full", "bradley_terry"])
def test_the_step_is_the_one_that_training_runs(use, tmp_path):
    config = config_of(use)
    planned = planning.build(config, jax.devices()[:1])
    config.tokenizer.path, config.data.train = "bytes", (rows_file(tmp_path, use),)
    run = setup.build_run(config)
    state = setup.first_state(run)[0]
    batch = run.put(run.source.batch(0))
    assert planned.lower().as_text() == run.step.lower(state, batch).as_text()
    assert budget.device_bytes(planned.parts["parameters"]) == sum(x.nbytes for x in jax.tree.leaves(state["params"]))
    found = {name: (x.shape, x.dtype) for name, x in planned.parts["batch"].items()}
    assert found == {name: (x.shape, x.dtype) for name, x in batch.items()}


def test_every_objective_has_a_batch_without_data():
    """The packaged training configs that need no settings of their own, cut down to two layers: each can be lowered."""
    for name in ("bradley_terry", "dpo", "grm", "plackett_luce", "lrhp_margin", "gram", "grpo_modadd"):
        config = flags.load(name)
        config.model.arch.num_layers = 2
        for _, phase, _ in phases(config, Path(), dry_run=True):
            program = planning.build(phase, jax.devices()[:1])
            assert program.model_flops() > 0 and "tokens" in program.parts["batch"], name


@pytest.mark.parametrize("scan", [True, False])
def test_abstract_weights_are_those_of_pack(scan):
    config = planning.without_data(config_of("score", dataclasses.replace(ARCH, tie_word_embeddings=True)))
    network = setup.open_network(config)
    real = jax.jit(lambda params: network.model.pack(params, scan=scan))(setup.load_for_use(network))
    planned = planning.abstract_weights(network, scan)
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for want, got in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert (want.shape, want.dtype) == (got.shape, got.dtype)
        assert got.sharding.is_equivalent_to(want.sharding, want.ndim)


@pytest.mark.parametrize("use", ["selective", "lora", "score", "decode"])
def test_every_use_compiles(use):
    program = planning.build(config_of(use), jax.devices()[:1])
    found = budget.read(program, planning_topology())
    assert found.fits and found.peak_gib_per_device > 0 and found.flops_per_step > 0
    assert found.hardware_flops_per_step >= found.flops_per_step


def planning_topology():
    from gramjax.core import chips

    return chips.parse("cpu:1")


def test_products_are_those_of_the_formula():
    """6 per parameter of a matrix and token, and causal attention in blocks: here one block, the full square."""
    program = planning.build(config_of("full"), jax.devices()[:1])
    tokens = 4 * 32
    layer = 32 * (4 + 2 + 2 + 4) * 8 + 3 * 32 * 48
    matrices = 3 * layer + 32 * 512
    attention = 3 * 4 * 2 * 2 * 32 * 32 * 4 * 8  # layers, rows, scores and mixing, two per multiply-add
    backward = 3 * 4 * 5 * 2 * 32 * 32 * 4 * 8  # scores again, and four more
    assert program.model_flops() == 6 * tokens * matrices + attention + backward
    assert program.flops() > program.model_flops()


def test_a_plan_is_for_jobs_that_run_a_program():
    config = config_of("full")
    config.job = "select_data"
    with pytest.raises(UserError, match="a plan is made of train, score, generate"):
        planning.build(config, jax.devices()[:1])


def test_memory_that_a_refused_program_wanted():
    text = ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (400.00G) exceeds available HBM (15.75G). HLO module: jit_step.")  # fmt: skip
    assert budget.needed_bytes(text) == 400 * 2**30
    with pytest.raises(RuntimeError, match="other"):
        budget.needed_bytes("INTERNAL: other")


def test_a_pass_counts_alike_with_a_mesh_of_one_device_and_without():
    """Products are counted on one device without a mesh."""
    config = config_of("full")
    program = planning.build(config, jax.devices()[:1])
    model = program.network.model
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in program.parts["batch"].items()}
    params = program.parts["parameters"]
    count = flops.of_products(lambda p: model.forward(model.pack(p), batch).hidden, params)
    alone = dataclasses.replace(model, mesh=None, attention="blocked")
    assert count == flops.of_products(lambda p: alone.forward(alone.pack(p), batch).hidden, params)
    assert sharding.platform(program.network.mesh) == "cpu"
    assert len(tree.flatten(params)) == 3 + 3 * 9
