"""Programs of a config without its data, weights or devices: what `gramjax plan` compiles and reads.

The training step is the one that `setup.build_run` jits, the reader that of `gramjax score`, the decoding step that of
the sampler. Arrays are shapes only. Where a config names no data, a row of each type stands for them: batches have the
shape that `config.data.max_length` gives them.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import config as configs
from gramjax.core import flops, plugins, sharding, spec, tree
from gramjax.core.errors import UserError
from gramjax.data import pipeline, rows
from gramjax.generation import experience, slots
from gramjax.generation.rollouts import Plan as RolloutPlan
from gramjax.models import heads, lora
from gramjax.scoring import reading, reward_model
from gramjax.training import scoring, setup

EXAMPLES: dict[str, dict[str, Any]] = {
    rows.PREFERENCE: {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.0},
    rows.LANGUAGE_MODELING: {"text": "a b"},
    rows.PROMPT_COMPLETION: {"prompt": "a", "completion": "b"},
    rows.PAIR_UNLABELLED: {"prompt": "a", "responses": ["b", "c"]},
    rows.RESPONSES: {"prompt": "a", "responses": ["b", "c"], "scores": [1.0, 0.0]},
    rows.RATIONALE: {"prompt": "a", "responses": ["b", "c"], "label": "A", "rationale": "because"},
    rows.PROMPT_ONLY: {"prompt": "a"},
}
"""A row of each type."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that can be compiled and read."""

    name: str
    lower: Callable[[], Any]
    parts: Mapping[str, Any]
    """Its arguments by what they are: `parameters`, `optimizer`, `batch`, `cache`; leaves have shape and sharding."""
    model_flops: Callable[[], int]
    """Of its products, over all devices: without what the backward pass computes again ..."""
    flops: Callable[[], int]
    """... and with it."""
    settings: Mapping[str, Any]
    """What decides its memory: batch, length, remat and the like, for messages."""
    network: setup.Network
    writes: bool = False
    """Whether it writes its parameters (and the optimiser's state)."""
    trains_vocabulary: bool = False
    """Whether the output matrix has a gradient."""


def build(config: Any, devices: Sequence[Any]) -> Program:
    """The program of a config for devices. Raises UserError for a config of another job."""
    config = without_data(config)
    makers: dict[str, Callable[[Any, Sequence[Any]], Program]] = {
        "train": training_step, "score": reader, "generate": decoding_step,
    }  # fmt: skip
    if config.job not in makers:
        raise UserError(f"config.job is {config.job!r}: a plan is made of {', '.join(makers)}")
    return makers[config.job](config, devices)


def without_data(config: Any) -> Any:
    """A copy that needs no tokenizer: bytes stand for one where the config names none."""
    config = copy.deepcopy(config)
    with config.unlocked():
        if not config.tokenizer.path and not config.model.path:
            config.tokenizer.path = "bytes"
    return config


def changed(config: Any, change: Mapping[str, Any]) -> Any:
    """A copy with other settings, by path."""
    config = copy.deepcopy(config)
    with config.unlocked():
        config.update_from_flattened_dict(dict(change))
    return config


# -- training ---------------------------------------------------------------------------------------------------------


def training_step(config: Any, devices: Sequence[Any]) -> Program:
    """The step of a training, with a batch of the shape that the data gives it."""
    train = configs.section(config.train, configs.TrainSection, "train")
    objective = plugins.load("objectives", config.objective.name)
    own = getattr(objective, "SECTION", "objective")
    settings = configs.section(config[own], objective.Config, own)
    network = setup.open_network(config, objective.HEADS, train.remat, train.scan_layers, devices)
    if hasattr(objective, "resolve"):
        settings = objective.resolve(settings, network.renderer)
    batch, settings = example_batch(config, network, objective, settings)
    count = train.batch_size
    if own != "objective":
        count = settings.prompts_per_step * settings.group_size
    setup.check_batch(dataclasses.replace(train, batch_size=count), network.mesh, config.data.max_length)
    program = setup.build_program(config, network, objective, settings, max(train.steps, 1000))
    abstract = abstract_batch(batch, count, network.mesh)
    second: tuple[Any, ...] = ()
    if program.with_reference:
        second = (reference_params(network, objective),)

    def counted(remat: str) -> int:
        """The products of the same step on one device, where every kernel is a matrix product that can be counted."""
        alone = dataclasses.replace(network.model, mesh=None, attention="blocked", remat=remat)
        plain = dataclasses.replace(network, model=alone, mesh=one_device(network.mesh))
        step = setup.build_program(config, plain, objective, settings, max(train.steps, 1000))
        return flops.of_products(step.function, step.abstract_state, abstract, *second)

    state = program.abstract_state
    vocabulary = ("embed",) if network.model.config.tie_word_embeddings else ("lm_head",)
    parts = {"parameters": state["params"], "optimizer": state["opt_state"], "batch": abstract, "reference": second}
    return Program(
        "training step",
        lambda: program.step.lower(state, abstract, *second),
        parts,
        lambda: counted("none"),
        lambda: counted(train.remat),
        {"batch_size": count, "grad_accum": train.grad_accum, "max_length": config.data.max_length,
         "remat": train.remat, "logit_chunk": train.logit_chunk, "mesh": dict(network.mesh.shape),
         "sequences": count * (batch["tokens"].shape[1] if batch["tokens"].ndim == 3 else 1)},
        network,
        writes=True,
        trains_vocabulary=any(program.labels.get(path) == tree.TRAIN for path in vocabulary),
    )  # fmt: skip


def example_batch(config: Any, network: setup.Network, objective: ModuleType, settings: Any) -> tuple[Any, Any]:
    """A batch of one example, as arrays, and the settings of the objective that follow from rows."""
    section, renderer = setup.data_section(config), network.renderer
    if hasattr(objective, "SECTION"):
        sampling = configs.section(config.sampling, configs.SamplingSection, "sampling")
        generation = configs.section(config.generation, configs.GenerationSection, "generation")
        plan = RolloutPlan(settings, sampling, generation, 0, 1, 1, section.packing, hasattr(settings, "gamma"))
        layout = experience.Layout(section.max_length, 1, section.packing, renderer.tokenizer.pad_id, 1)
        return layout.batch([], plan.beside)[0], settings
    wanted = objective.row_types(settings) if hasattr(objective, "row_types") else objective.ROW_TYPES
    row = rows.normalise({"id": "example", **EXAMPLES[wanted[0]]}, wanted[0], "example")
    if hasattr(objective, "fit_rows"):
        settings = objective.fit_rows(settings, [row])
    made = objective.encode(row, renderer, settings)
    examples = list(made) if isinstance(made, tuple | list) else [made]
    slots = experience.MOST_PACKED if section.packing else 1
    return pipeline.collate([examples[:1]], section.max_length, slots, renderer.tokenizer.pad_id), settings


def abstract_batch(batch: Mapping[str, Any], count: int, mesh: Any) -> dict[str, Any]:
    """The shapes of `count` such rows, placed as a run places them."""
    shapes = {name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    places = sharding.batch_shardings(shapes, mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name]) for name, x in shapes.items()}


def reference_params(network: setup.Network, objective: ModuleType) -> Any:
    """The shapes of a second, frozen model."""
    model = setup.reference_model(network.model, objective)
    specs = model.specs()
    return spec.abstract(specs, setup.frozen_dtypes(model), sharding.shardings(specs, network.mesh))


def one_device(mesh: Any) -> Any:
    """A mesh of the first device, with the same axes."""
    return sharding.make_mesh(configs.MeshSection(), [mesh.devices.flat[0]])


# -- using a model ----------------------------------------------------------------------------------------------------


def reader(config: Any, devices: Sequence[Any]) -> Program:
    """One batch of `gramjax score`: `config.score.batch_size` rows of `config.data.max_length` tokens."""
    network = setup.open_network(config, devices=devices)
    model, mesh = network.model, network.mesh
    section = configs.section(config.score, configs.ScoreSection, "score")
    settings, layout = scoring.settings_of(section)
    kind = reward_model.check(model, settings)
    length, count = config.data.max_length, section.batch_size
    weights = abstract_weights(network, scan=True)
    read = reading.make_reader(model, kind, (0, 1), settings.label_space == "full", mesh)
    kinds: dict[str, Any] = dict.fromkeys(("tokens", "segment_ids", "positions", "ends"), np.int32)
    if kind == "implicit":
        kinds |= {"labels": np.int32, "loss_mask": np.float32}
    row = {name: np.zeros((1, 1 if name == "ends" else length), dtype) for name, dtype in kinds.items()}
    batch = abstract_batch(row, count, mesh)
    alone = dataclasses.replace(model, mesh=None, attention="blocked")
    plain = reading.make_reader(alone, kind, (0, 1), settings.label_space == "full")

    def counted() -> int:
        return flops.of_products(plain, weights, batch)

    return Program(
        "scoring", lambda: read.lower(weights, batch), {"parameters": weights, "batch": batch}, counted, counted,  # type: ignore[attr-defined]
        {"batch_size": count, "max_length": length, "mesh": dict(mesh.shape)}, network,
    )  # fmt: skip


def decoding_step(config: Any, devices: Sequence[Any]) -> Program:
    """A token for each of `config.generation.slots` answers, with caches of `config.generation.max_length` tokens."""
    network = setup.open_network(config, heads=("tokens",), devices=devices)
    model, mesh = network.model, network.mesh
    settings = configs.section(config.generation, configs.GenerationSection, "generation")
    length = settings.max_length or model.config.max_position_embeddings
    weights = abstract_weights(network, scan=False, gather=settings.gather_weights)
    empty = functools.partial(
        slots.empty.lower, model=model, batch=settings.slots, capacity=length, num_stops=4, with_seen=False,
        with_allowed=False,
    )  # fmt: skip
    lowered = empty(weights)
    places = lowered.compile().output_shardings
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), lowered.out_info, places
    )
    everywhere = sharding.replicated(mesh)
    halt = jax.ShapeDtypeStruct((settings.slots,), bool, sharding=everywhere)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    alone = dataclasses.replace(model, mesh=None, attention="xla")

    def one_token(weights: Any, state: Any) -> Any:
        batch = {"tokens": state.token[:, None], "segment_ids": state.active.astype(jnp.int32)[:, None]}
        return heads.logits(weights, alone.forward(weights, batch, state.cache).hidden[:, 0])

    def counted() -> int:
        return flops.of_products(one_token, weights, state)

    return Program(
        "decoding step",
        lambda: slots.decode.lower(weights, state, halt, number, number, model=model, most=settings.steps_per_call),
        {"parameters": weights, "cache": state.cache},
        counted,
        counted,
        {"slots": settings.slots, "max_length": length, "mesh": dict(mesh.shape)},
        network,
    )


def abstract_weights(network: setup.Network, scan: bool, gather: bool = False) -> Any:
    """The shapes and places of weights in use, as `pack` (`scan`) or `pack_for_decoding` gives them."""
    model = network.model
    rules = {**sharding.RULES, "embed": ()} if gather else sharding.RULES
    plain = model if scan else dataclasses.replace(model, config=lora.off(model.config))
    specs = plain.specs()
    params = spec.abstract(specs, setup.frozen_dtypes(plain), sharding.shardings(specs, network.mesh, rules))
    packed = jax.eval_shape(functools.partial(plain.pack, scan=scan and None), params)
    # Which parameter a leaf of the packed weights is: packed as numbers, it keeps its number.
    paths = list(tree.flatten(params))
    numbers = tree.unflatten({path: jnp.float32(i) for i, path in enumerate(paths)})
    flat = tree.flatten(params)
    numbered = dataclasses.replace(plain, compute_dtype=jnp.dtype(jnp.float32)).pack(numbers, scan=scan and None)

    def place(leaf: Any, number: Any) -> jax.ShapeDtypeStruct:
        first = flat[paths[int(jnp.ravel(number)[0])]].sharding
        extra = (None,) * (leaf.ndim - len(flat[paths[int(jnp.ravel(number)[0])]].shape))
        where = jax.sharding.NamedSharding(network.mesh, jax.sharding.PartitionSpec(*extra, *first.spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, packed, numbered)
