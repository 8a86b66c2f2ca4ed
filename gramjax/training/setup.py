"""The one place where a run is built: from a config to model, data, state and compiled step.

Where the first weights come from is decided here and once, in this order: the newest good checkpoint of this run,
else the run, Hugging Face folder or llama2.c file that `config.model.path` names, else fresh ones.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gramjax.checkpoint import huggingface, tables
from gramjax.checkpoint import source as weight_source
from gramjax.core import config as configs
from gramjax.core import layer_selection, plugins, sharding, spec, tree
from gramjax.core.errors import UserError
from gramjax.data import pipeline, readers, rows, tokenizer
from gramjax.data.text import Renderer
from gramjax.models import lora
from gramjax.models.attention import compiler_options
from gramjax.models.model import Model, build
from gramjax.training import evaluation, optimizer
from gramjax.training.step import State, make_step

OF_HEADS = {"preference_width": "preference", "preference_pool": "preference", "score_hidden": "score"}
"""Sizes and kinds of heads, which a training may choose where the weights do not have that head yet."""
SHARED_ARCHITECTURE = ("heads", *OF_HEADS)
"""Architecture settings that may be given although the weights come from `config.model.path`."""

FRESH = ("score", "score_hidden", "value", "lm_head", "preference", "margin")
"""Heads that a training may start afresh."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A model, its tokenizer, and where its weights are."""

    model: Model
    renderer: Renderer
    source: Any
    """What `checkpoint.source.open_source` found, or None: fresh weights."""
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a training job needs, with no array made yet."""

    network: Network
    objective: ModuleType
    objective_config: Any
    labels: Mapping[str, str]
    """Every parameter path: `train` or `freeze`."""
    tx: Any
    step: Any
    """The training step, jitted with shardings and a donated state."""
    source: Any
    """Where batches come from: a `pipeline.Pipeline` or `generation.rollouts.Rollouts`."""
    rolls: bool
    """Whether the source draws its own examples: batches differ in shape, and it is given the reference."""
    abstract_state: State
    """Shapes, dtypes and shardings of the state."""
    total_steps: int
    seed: int
    data_counts: dict[str, Any]
    valid_rows: list[dict[str, Any]]
    """What the evals during and after training see; empty when there are no evals or no such rows."""

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch of this process as global arrays."""
        return put(self.network.mesh, batch)


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step that can be traced, compiled or run."""

    labels: Mapping[str, str]
    """Every parameter path: `train` or `freeze`."""
    tx: Any
    function: Any
    """`(state, batch[, reference]) -> (state, metrics)`, not jitted."""
    step: Any
    """The same, jitted with shardings and a donated state."""
    abstract_state: State
    with_reference: bool


def put(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch of this process as global arrays, rows over `data` and `fsdp`, their length over `context`."""
    places, shares = sharding.batch_shardings(batch, mesh), sharding.share_of_rows(mesh, jax.process_index())[1]
    return {
        name: jax.make_array_from_process_local_data(places[name], x, (x.shape[0] * shares, *x.shape[1:]))
        for name, x in batch.items()
    }


def open_network(
    config: Any,
    heads: tuple[str, ...] = (),
    remat: str = "none",
    scan_layers: bool = True,
    devices: Sequence[Any] | None = None,
) -> Network:
    """The model and tokenizer a config names. `heads` replaces the heads of the architecture when given.

    `devices` (default: those of this job) may be ones that are not there, to compile for.
    """
    section = configs.section(config.model, configs.ModelSection, "model")
    tokens = configs.section(config.tokenizer, configs.TokenizerSection, "tokenizer")
    module = plugins.load("models", section.kind)
    source = weight_source.open_source(section.path, section.step or None, section.adapter) if section.path else None
    tokenizer_path = tokens.path or (source.tokenizer_folder if source else "")
    if not tokenizer_path:
        raise UserError(
            "no tokenizer: give --config.tokenizer.path=FOLDER (or 'bytes'), or a model folder that has one"
        )
    loaded = tokenizer.load(tokenizer_path, tokens.pad, tokens.chat_template)
    arch = architecture(module, config.model.get("arch"), source, loaded.vocab_size)
    if "lora" in config:  # else the adapters that the weights have
        arch = with_adapters(arch, configs.section(config.lora, configs.LoraSection, "lora"))
    if heads:
        arch = dataclasses.replace(arch, heads=tuple(heads))
        refuse_idle_sizes(module, config.model.get("arch"), arch.heads)
    loaded.check_fits(arch.vocab_size)
    mesh = sharding.make_mesh(configs.section(config.mesh, configs.MeshSection, "mesh"), devices)
    check_mesh(arch, mesh)
    model = build(
        section.kind,
        arch,
        mesh,
        section.compute_dtype,
        attention=section.attention,
        remat=remat,
        scan_layers=scan_layers,
        logit_chunk=config.train.logit_chunk if "train" in config else 1024,
    )
    weights = None if section.random_weights else source
    return Network(model, Renderer(loaded, data_section(config)), weights, mesh)


def data_section(config: Any) -> configs.DataSection:
    """The data section as a record."""
    return configs.section(config.data, configs.DataSection, "data")


def architecture(module: ModuleType, given: Any, source: Any, vocab_size: int) -> Any:
    """The sizes of the model: those of the weights, or `config.model.arch` for fresh ones.

    Raises UserError when both speak: a size that is set although the weights decide it would be ignored.
    """
    default = module.Config()
    asked = configs.section(given, module.Config, "model.arch") if given is not None else default
    if source is None:
        padded = asked.vocab_size or -(-vocab_size // 64) * 64
        return dataclasses.replace(asked, vocab_size=padded)
    for field in dataclasses.fields(asked):
        if field.name not in SHARED_ARCHITECTURE and getattr(asked, field.name) != getattr(default, field.name):
            found = getattr(source.config, field.name)
            if getattr(asked, field.name) != found:
                raise UserError(
                    f"config.model.arch.{field.name} is {getattr(asked, field.name)!r} but the weights of "
                    f"config.model.path have {found!r}; leave it out, or leave out config.model.path"
                )
    found = source.config
    for name, head in OF_HEADS.items():
        own = getattr(asked, name, None)
        if own == getattr(default, name, None) or own == getattr(found, name):
            continue
        if head in found.heads:
            raise UserError(
                f"config.model.arch.{name} is {own} but the {head} head of config.model.path has "
                f"{getattr(found, name)}; leave it out"
            )
        found = dataclasses.replace(found, **{name: own})
    return found


def refuse_idle_sizes(module: ModuleType, given: Any, heads: tuple[str, ...]) -> None:
    """Raise UserError for the size of a head in `config.model.arch` that this training does not have."""
    for name, head in OF_HEADS.items():
        own = given.get(name) if given is not None else None
        if own is not None and head not in heads and own != getattr(module.Config(), name, own):
            raise UserError(
                f"config.model.arch.{name} is {own!r}, but this training has no {head} head (it has "
                f"{', '.join(heads)}); leave it out"
            )


def with_adapters(arch: Any, asked: configs.LoraSection) -> Any:
    """The architecture with the adapters of `config.lora`; raises UserError for a kind of model that has none."""
    if not hasattr(arch, "lora"):
        if asked.rank:
            raise UserError("config.lora.rank: this kind of model has no adapters")
        return arch
    return dataclasses.replace(arch, lora=asked)


def trained(
    paths: Sequence[str], trainable: Sequence[str], source: Any, selected: Sequence[str] = ()
) -> dict[str, str]:
    """Every path labelled `train` or `freeze`.

    Without adapters `config.train.trainable` decides, or the patterns that `config.select` stands for (`selected`).
    With adapters or a selection, they and the heads that are not pretrained (all but the vocabulary, and that too where
    the source of the weights has none) train; with adapters what `trainable` names besides, of which its default,
    everything, names nothing then. Raises UserError for several of them at once.
    """
    everything = tuple(trainable) == configs.TrainSection.trainable
    adapters = any(lora.is_rank_leaf(path) for path in paths)
    if selected and (adapters or not everything):
        other = "the model has adapters (merge them: gramjax convert)" if adapters else "so is config.train.trainable"
        raise UserError(f"config.select is given, but {other}: which parameters train?")
    if not adapters and not selected:
        return tree.labels(paths, trainable)
    if selected:
        labels = tree.labels(paths, selected, "config.select (targets, also)")
    else:
        labels = dict.fromkeys(paths, tree.FREEZE) if everything else tree.labels(paths, trainable)
    pretrained = () if source is not None and "tokens" not in source.config.heads else ("tokens",)
    for path in paths:
        head = tables.HEAD_OF.get(path)
        if lora.is_rank_leaf(path) or (head and head not in pretrained):
            labels[path] = tree.TRAIN
    return labels


def check_mesh(arch: Any, mesh: Mesh) -> None:
    """Raise UserError when the heads do not divide over the tensor axis."""
    tensor = mesh.shape["tensor"]
    for name in ("num_heads", "num_kv_heads"):
        if getattr(arch, name, tensor) % tensor:
            raise UserError(f"config.mesh.tensor={tensor} does not divide {name}={getattr(arch, name)}")


def build_run(config: Any) -> Run:
    """Build everything of a training job but the arrays of its state."""
    train = configs.section(config.train, configs.TrainSection, "train")
    objective = plugins.load("objectives", config.objective.name)
    own = getattr(objective, "SECTION", "objective")
    rolls = own != "objective"
    objective_config = configs.section(config[own], objective.Config, own)
    network = open_network(config, objective.HEADS, train.remat, train.scan_layers)
    mesh, renderer = network.mesh, network.renderer
    if hasattr(objective, "resolve"):
        objective_config = objective.resolve(objective_config, renderer)
    with_reference = needs_reference(objective, objective_config)
    if not with_reference and config.get("reference", {}).get("path"):
        raise UserError("config.reference.path is given, but this objective with these settings looks at no reference")
    held_out = valid_rows(config) if train.evaluate else []
    if train.keep_best and not held_out:
        raise UserError("config.train.keep_best: nothing is evaluated without held-out rows (config.data.valid)")
    source: Any
    if rolls:
        from gramjax.training import reinforcement

        source, objective_config, counts = reinforcement.build_source(
            config, network, objective_config, functools.partial(put, mesh)
        )
    else:
        check_batch(train, mesh, data_section(config).max_length)
        source, objective_config, counts = _offline_source(config, network, objective, objective_config, held_out)
    counts["notes"] |= {name: [n, ""] for name, n in renderer.counts.items()}

    program = build_program(config, network, objective, objective_config, source.steps)
    return Run(
        network, objective, objective_config, program.labels, program.tx, program.step, source, rolls,
        program.abstract_state, source.steps, config.seed, counts, held_out,
    )  # fmt: skip


def build_program(
    config: Any, network: Network, objective: ModuleType, objective_config: Any, total_steps: int
) -> Program:
    """The training step of a config for a network and its mesh; it needs no data and makes no array."""
    train = configs.section(config.train, configs.TrainSection, "train")
    model, mesh = network.model, network.mesh
    select = configs.section(config.get("select", {}), configs.SelectSection, "select")
    selected = layer_selection.patterns(select, model.config)
    labels = trained(list(tree.flatten(model.specs(), is_leaf=spec.is_spec)), train.trainable, network.source, selected)
    if tree.TRAIN not in labels.values():
        raise UserError(f"config.train.trainable={tuple(train.trainable)} leaves no parameter to train")
    optim = configs.section(config.optim, configs.OptimSection, "optim")
    tx = optimizer.build(optim, labels, total_steps)
    abstract = abstract_state(model, labels, tx, mesh)
    rolls = hasattr(objective, "SECTION")
    step = make_step(
        model,
        functools.partial(_loss, objective, objective_config),
        tx,
        labels,
        optimizer.schedule(optim, total_steps),
        train.grad_accum,
        may_be_empty=rolls,
        reference_model=reference_model(model, objective),
    )
    with_reference = needs_reference(objective, objective_config) and not rolls
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, None)[: 2 + with_reference],  # a batch and a reference lie where they were put
        out_shardings=(shardings, None),
        compiler_options=compiler_options(sharding.platform(mesh)),
    )
    return Program(labels, tx, step, jitted, abstract, with_reference)


def valid_rows(config: Any) -> list[dict[str, Any]]:
    """The rows that evals during and after training see; empty when there are no evals or no such rows."""
    section = data_section(config)
    if not config.evals or not section.valid:
        return []
    return readers.read_all(section.valid, section, evaluation.row_types(config.evals)).rows


def check_lengths(examples: pipeline.Examples, max_length: int, arch: Any) -> None:
    """Raise UserError for an example that is longer than what the model was made for."""
    longest, most = max(examples.lengths), getattr(arch, "max_position_embeddings", 0)
    if most and longest > most:
        raise UserError(
            f"a row of {longest:,} tokens (config.data.max_length={max_length}) is longer than the model was "
            f"made for (max_position_embeddings={most}): give --config.data.max_length={most}"
        )


def _offline_source(
    config: Any, network: Network, objective: ModuleType, objective_config: Any, held_out: Sequence[dict[str, Any]]
) -> tuple[pipeline.Pipeline, Any, dict[str, Any]]:
    """Rows as batches, the settings of the objective that follow from them, and what became of the rows."""
    train, section = configs.section(config.train, configs.TrainSection, "train"), data_section(config)
    wanted = objective.row_types(objective_config) if hasattr(objective, "row_types") else objective.ROW_TYPES
    found = readers.read_all(section.train, section, wanted)
    if hasattr(objective, "fit_rows"):
        objective_config = objective.fit_rows(objective_config, found.rows)
    encode = functools.partial(_encode, objective, network.renderer, objective_config)
    examples = pipeline.encode_rows(found.rows, encode, section, network.model.config.vocab_size)
    check_lengths(examples, section.max_length, network.model.config)
    if shared := readers.overlap(found.rows, held_out):
        found.notes.add("held-out row whose prompt is in the training rows too", "", shared)
    source = pipeline.Pipeline(
        examples,
        section,
        train.batch_size,
        config.seed,
        train.epochs,
        train.steps,
        *sharding.share_of_rows(network.mesh, jax.process_index()),
        network.renderer.tokenizer.pad_id,
        found.files,
    )
    dropped = rows.Tally(found.dropped)
    dropped.merge(examples.dropped)
    return source, objective_config, readers.counts(found, len(examples), dropped)


def _encode(objective: ModuleType, renderer: Renderer, objective_config: Any, row: dict[str, Any]) -> Any:
    return objective.encode(row, renderer, objective_config)


def _loss(
    objective: ModuleType, objective_config: Any, model: Model, weights: Any, batch: Any, reference: Any = None
) -> Any:
    return objective.loss(model, weights, batch, objective_config, reference)


def needs_reference(objective: ModuleType, objective_config: Any) -> bool:
    """Whether the loss looks at the weights of a second, frozen model."""
    return hasattr(objective, "needs_reference") and objective.needs_reference(objective_config)


def reference_model(model: Model, objective: ModuleType) -> Model:
    """The model whose weights a reference holds: the trained one without adapters, or what the objective says."""
    arch = lora.off(model.config)
    if hasattr(objective, "reference_arch"):
        arch = objective.reference_arch(arch)
    return dataclasses.replace(model, config=arch)


def check_batch(train: configs.TrainSection, mesh: Mesh, length: int = 0) -> None:
    """Raise UserError when a batch does not divide into microbatches and devices, or the length of its rows."""
    if length % mesh.shape["context"]:
        raise UserError(
            f"config.data.max_length={length} does not divide over config.mesh.context={mesh.shape['context']}"
        )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * train.grad_accum
    if train.batch_size % unit:
        below = train.batch_size // unit * unit
        raise UserError(
            f"config.train.batch_size={train.batch_size} does not divide over {shards} devices (data x fsdp) x "
            f"{train.grad_accum} microbatches: use {', '.join(str(b) for b in (below, below + unit) if b)} …"
        )


def param_dtypes(model: Model, labels: Mapping[str, str]) -> dict[str, Any]:
    """Dtype at rest by path: float32 for what trains, the compute dtype for frozen matrices."""
    flat = tree.flatten(model.specs(), is_leaf=spec.is_spec)

    def one(path: str, leaf: spec.Spec) -> Any:
        matrix = len(leaf.shape) >= 2 and leaf.shape[-1] > 1
        return model.compute_dtype if labels[path] == tree.FREEZE and matrix else jnp.dtype(jnp.float32)

    return tree.unflatten({path: one(path, leaf) for path, leaf in flat.items()})


def abstract_state(model: Model, labels: Mapping[str, str], tx: Any, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the training state. Optimiser moments lie where their parameters lie."""
    specs = model.specs()
    param_shardings = sharding.shardings(specs, mesh)
    params = spec.abstract(specs, param_dtypes(model, labels), param_shardings)
    by_path = tree.flatten(params)
    everywhere = sharding.replicated(mesh)

    def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        for start in range(len(names)):
            like = by_path.get("/".join(names[start:]))
            if like is not None and like.shape == leaf.shape:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    opt_state = jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return {"params": params, "opt_state": opt_state, "step": step}


def first_state(run: Run) -> tuple[State, huggingface.Loaded]:
    """A state at step 0, and what reading its weights had to say; every array is made on its own devices."""
    model, source = run.network.model, run.network.source
    shardings = jax.tree.map(lambda x: x.sharding, run.abstract_state)
    dtypes = jax.tree.map(lambda x: x.dtype, run.abstract_state["params"])
    loaded = load_params(model, source, shardings["params"], dtypes, run.seed)
    opt_state = jax.jit(run.tx.init, out_shardings=shardings["opt_state"])(loaded.params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings["step"])
    return {"params": loaded.params, "opt_state": opt_state, "step": step}, loaded


def load_params(model: Model, source: Any, shardings: Any, dtypes: Any, seed: int = 0) -> huggingface.Loaded:
    """Parameters from a source of weights (None: drawn from the seed).

    Only heads may be missing from a source, and are then drawn; anything else stops with an error of the reader.
    """
    specs, key = model.specs(), jax.random.key(seed)
    if source is None:
        params = spec.init_params(specs, key, dtypes, shardings)
        return huggingface.Loaded(params, ("*",), ("all parameters are drawn from the seed",))
    heads = tuple(name for name in FRESH if name in specs)
    return source.load(specs, model.config, shardings, dtypes, fresh=heads, key=key)


def frozen_dtypes(model: Model) -> Any:
    """Dtype of every parameter of a model that will not be trained: the compute dtype for matrices."""

    def one(leaf: spec.Spec) -> Any:  # adapters may be merged: not rounded before
        matrix = len(leaf.shape) >= 2 and leaf.shape[-1] > 1 and "rank" not in leaf.axes
        return model.compute_dtype if matrix else jnp.dtype(jnp.float32)

    return spec.map_specs(one, model.specs())


def load_for_use(network: Network, seed: int = 0, fresh: tuple[str, ...] = ()) -> Any:
    """The parameters of a network that will not be trained: matrices in the compute dtype. Notes go to stderr.

    Raises UserError when a head of the model that is not among `fresh` is missing from its source; those of `fresh`,
    and everything without a source, are drawn from the seed.
    """
    model = network.model
    places = sharding.shardings(model.specs(), network.mesh)
    dtypes = frozen_dtypes(model)
    if network.source is None:
        loaded = load_params(model, None, places, dtypes, seed)
    else:  # a head that is not there cannot be made up
        key = jax.random.key(seed) if fresh else None
        loaded = network.source.load(model.specs(), model.config, places, dtypes, fresh=fresh, key=key)
    for note in loaded.notes:
        print(f"gramjax: {note}", file=sys.stderr)
    return loaded.params
