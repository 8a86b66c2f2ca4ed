"""The sections of a config: their fields, defaults and meaning, and the way from a config file to frozen records.

A config file is a short Python file with `get_config()`; it starts from `defaults(...)` and changes what its
experiment changes. Inside gramjax nothing reads the mutable config: every section becomes a frozen dataclass at the
door (`section`). Sequences are tuples, optional numbers have a value that means "off", so that every field can be
overridden on the command line.
"""

import dataclasses
import math
from typing import Any, TypeVar

from ml_collections import ConfigDict

from gramjax.core import plugins
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import ELSEWHERE, GrpoSection, RewardSection
from gramjax.core.safety import SafetySection
from gramjax.core.use import ScoreSection, ServeSection

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which network, and where its weights come from."""

    kind: str = "decoder"
    """A file of `gramjax/models`."""
    path: str = ""
    """Hugging Face folder, gramjax run folder (`RUN@best`: its best checkpoint) or llama2.c file with weights; empty:
    random weights from `arch`."""
    step: int = 0
    """Checkpoint of a run folder at `path`; 0: the newest that is whole."""
    adapter: str = ""
    """PEFT folder (LoRA, safetensors) that belongs to the weights at `path`; empty: none."""
    random_weights: bool = False
    """Take only the architecture from `path`, and draw the weights from the seed."""
    compute_dtype: str = "auto"
    """`auto` (bfloat16 on accelerators, float32 on a CPU), `float32` or `bfloat16`."""
    attention: str = "auto"
    """`auto` (the fast one of the backend), `xla`, `blocked`, `cudnn` (NVIDIA) or `splash` (TPU): the attention."""


@dataclasses.dataclass(frozen=True)
class TokenizerSection:
    """Which tokenizer."""

    path: str = ""
    """Folder with `tokenizer.json`, a llama2.c `.bin`, `bytes`, or `recipe:NAME`; empty: the folder of the model."""
    pad: str = ""
    """Text of the token used for padding; empty: the tokenizer's own, or a reserved one."""
    chat_template: str = ""
    """`chatml`, `alpaca`, `human_assistant`, a `.jinja` file, `none` (plain text), or empty for the tokenizer's own."""


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Which rows, and how they become tokens."""

    train: tuple[str, ...] = ()
    """Files, folders or `recipe:NAME` (rows that the package generates)."""
    valid: tuple[str, ...] = ()
    """Held-out rows for the evals of a training run."""
    path: str = ""
    """What `gramjax evaluate` reads: a file, a folder or a recipe."""
    rename: tuple[str, ...] = ()
    """Column renames, each `old:new`."""
    limit: int = 0
    """Use only the first rows; 0: all."""
    pairs_per_record: int = 0
    """Pairs drawn (seeded) from a record that holds many answers; 0: every pair."""
    max_length: int = 1024
    """Longest example, in tokens; also the length that batches are padded to."""
    overlong: str = "drop"
    """`drop`, `truncate_prompt_left`, `shorten_responses` or `error`."""
    max_overlong_share: float = 0.05
    """More dropped over-long rows than this is an error."""
    on_bad_row: str = "raise"
    """`raise` or `skip` (counted) for rows that cannot be read."""
    max_bad_share: float = 0.05
    """More rows skipped as unreadable than this is an error."""
    packing: bool = False
    """Put several examples in one sequence, kept apart by segment ids."""
    renderings: str = "draw"
    """`draw` one of an example's renderings (answer orders) per epoch, `all`: each is an example, `first`: always
    the first."""
    judge_prompt: str = ""
    """Instruction of a generative judge; empty: the package's own wording."""
    judge_cue: str = "#Preferred:"
    """The last words before the verdict; never truncated."""
    verdicts: tuple[str, str] = ("A", "B")
    """The two verdict texts; each must be one token after the cue."""


@dataclasses.dataclass(frozen=True)
class OptimSection:
    """The update of the trained parameters."""

    name: str = "adamw"
    lr: float = 1e-5
    """Largest learning rate."""
    lr_factors: tuple[str, ...] = ()
    """Factors of the learning rate by parameter, each `pattern:factor`; the first pattern that matches the whole path
    counts, and 1 where none does."""
    schedule: str = "cosine"
    """`cosine`, `linear` or `constant` after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises."""
    end_lr_ratio: float = 0.0
    """Last learning rate as a share of the largest."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of the trained parameters, times the learning rate."""
    no_decay: tuple[str, ...] = (r".*norm.*", r".*bias.*")
    """Patterns of parameters without weight decay."""
    clip_norm: float = 1.0
    """Largest global norm of the trained gradients; 0: no clipping."""


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """How long, how much per step, and what trains."""

    epochs: float = 1.0
    """Passes over the training examples."""
    steps: int = 0
    """Optimiser steps; 0: as many as `epochs` need."""
    batch_size: int = 32
    """Examples per optimiser step over all devices."""
    grad_accum: int = 1
    """Microbatches per optimiser step."""
    trainable: tuple[str, ...] = (r".*",)
    """Patterns of the parameters that train; the others are frozen."""
    remat: str = "full"
    """What the backward pass computes again: `none`, `full` (all but the input of each layer) or `projections` (all but
    the products with weights and the attention output)."""
    scan_layers: bool = True
    """Stack like layers and scan over them (short programs); False: one piece of program per layer."""
    logit_chunk: int = 1024
    """Tokens of a device whose vocabulary logits exist at once in the loss."""
    log_every: int = 10
    """Steps between log entries."""
    evaluate: bool = True
    """Run the evals of `config.evals` on `config.data.valid` at the end and every `eval_every` steps."""
    eval_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    save_every: int = 500
    """Steps between checkpoints: what a kill loses at most; 0: only at the end (and when asked to stop)."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_best: int = 0
    """Checkpoints kept beside them: the best of those that were evaluated, saved when they were; 0: none."""
    best_metric: str = ""
    """What the best are best by, as `metrics.jsonl` has it: `eval/NAME/KEY`, such as `eval/preference/accuracy`."""
    best_mode: str = "max"
    """`max`, or `min` for what should be small, such as `eval/preference/nll`."""


@dataclasses.dataclass(frozen=True)
class SelectSection:
    """Train only parts of some layers (SLAM, arXiv 2501.03681); everything else is frozen."""

    path: str = ""
    """`layers.json` of `gramjax select_layers`, or its folder."""
    layers: tuple[int, ...] = ()
    """Layers named here, counted from 0."""
    rule: str = ""
    """`measured`: those of path or layers, one of which must be given; `lower`, `upper` or `random`: others in their
    place, for comparison. Empty: those of path or layers if one is given, else everything trains."""
    count: int = 0
    """Layers that are taken in their place; 0: as many as path or layers has."""
    seed: int = 0
    """Of random layers."""
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    """Parts of each chosen layer that train: `mlp/up`, `mlp/down`, `mlp/gate`, `mlp`, `attn`, `attn/q`, ..."""
    also: tuple[str, ...] = ()
    """Patterns of other parameters that train with them, such as `embed`."""


@dataclasses.dataclass(frozen=True)
class ProbeSection:
    """The texts that a layer selection looks at (`gramjax select_layers`), from `config.data.path` or `data.train`."""

    languages: tuple[str, ...] = ()
    """Codes of the languages that are compared, such as `en`; empty: all that the texts have."""
    max_tokens: int = 200_000
    """Most tokens of each language that count."""
    positions: str = "prompt"
    """Which tokens count: those of the `prompt` (the text itself, without markup), the `last` of them, those of the
    `completion`, or `all`."""
    parallel: bool = True
    """Use only texts that every language has (joined by row number), so that the topic does not differ."""
    batch_size: int = 8
    """Texts per pass over all devices."""


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (LoRA): thin matrices beside frozen ones. They train, with the score and value heads and what
    `config.train.trainable` names."""

    rank: int = 0
    """Width of the thin matrices; 0: no adapters."""
    alpha: float = 0.0
    """Their product is scaled by alpha / rank; 0: twice the rank."""
    targets: tuple[str, ...] = (r"layers/\d+/(attn/[qkvo]|mlp/(gate|up|down))",)
    """Patterns of the projections that have adapters; each must match a whole path."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    dropout: float = 0.0
    """Share of the numbers that a pair of thin matrices reads in training which are set to 0, below 1."""


@dataclasses.dataclass(frozen=True)
class ReferenceSection:
    """The frozen second model of objectives that compare with one (DPO)."""

    path: str = ""
    """Weights of the same architecture, as in config.model.path; empty: those that the training starts from."""
    step: int = 0
    """Checkpoint of a run folder at `path`; 0: the newest that is whole."""


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """Devices along each axis; -1 (one axis at most): all that remain."""

    data: int = 1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = -1
    """Devices that share the parameters and the batch."""
    tensor: int = 1
    """Devices that share each layer, by heads and mlp width."""
    context: int = 1
    """Devices that share the length of each row: for long rows, when a device cannot hold one."""
    slices: int = 1
    """Groups of devices with a slow network between them (TPU slices); the `data` axis spans them, no other does."""


@dataclasses.dataclass(frozen=True)
class LogSection:
    """Where metrics go besides `metrics.jsonl`."""

    report: bool = True
    """Draw `report.html` and its figures at the end (a second or two); `gramjax report RUN` does so at any time."""
    tensorboard: bool = True
    """Write event files to `tb/`."""
    wandb: str = ""
    """Project name; empty: no W&B."""


@dataclasses.dataclass(frozen=True)
class EnsembleSection:
    """Models that judge together (`gramjax evaluate`)."""

    members: tuple[str, ...] = ()
    """Runs or Hugging Face folders that judge beside config.model.path; empty: it judges alone."""
    combination: str = "mean"
    """`mean`, `worst` (smallest reward), `uncertainty` (mean less the penalty times the variance of the members) or
    `deviation` (less the penalty times their standard deviation)."""
    penalty: float = 0.5
    """Of the combinations `uncertainty` and `deviation`."""


@dataclasses.dataclass(frozen=True)
class SamplingSection:
    """How answers are drawn from a model."""

    max_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """0: greedy."""
    top_k: int = 0
    """Draw among the most likely tokens only; 0: all."""
    top_p: float = 1.0
    """Draw among the smallest set of likely tokens that has this mass, after top_k; 1: all."""
    min_p: float = 0.0
    """Draw among tokens at least this likely, relative to the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive logits (multiplies negative ones) of tokens in the prompt and the answer so far; 1: off."""
    n: int = 1
    """Answers to each prompt."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside the tokenizer's end token."""
    ignore_eos: bool = False
    """Go on after the tokenizer's end token."""
    num_beams: int = 1
    """Hypotheses kept by a beam search, which draws nothing (temperature 0) and gives the `n` best; 1: none."""
    length_penalty: float = 1.0
    """A hypothesis scores its summed log-probability over its length to this power; above 0 favours long ones."""
    early_stopping: str = "False"
    """A beam search ends when as many hypotheses as beams are finished and (`False`) the best beam would not be among
    them as long as it is now, (`never`) nor at any length; `True`: at once."""


@dataclasses.dataclass(frozen=True)
class GenerationSection:
    """How the sampler uses the device; none of this changes what is drawn."""

    slots: int = 8
    """Answers (or beams) that are made at once."""
    steps_per_call: int = 32
    """Tokens per slot between two looks of the host (stop texts, refill, streaming)."""
    refill_share: float = 0.125
    """Share of the slots that must be free before the others wait for their refill."""
    prefill_rows: int = 0
    """Prompts read at once; 0: one on a CPU, 8 elsewhere."""
    prefill_length: int = 512
    """Longest piece of a prompt that is read at once."""
    max_length: int = 0
    """Most tokens of prompt and answer together; 0: what the model was made for (max_position_embeddings)."""
    gather_weights: bool = True
    """Copy the weights to every device of `data` and `fsdp` for sampling; False: gather them in every step."""


SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "tokenizer": TokenizerSection,
    "data": DataSection,
    "optim": OptimSection,
    "train": TrainSection,
    "select": SelectSection,
    "probe": ProbeSection,
    "lora": LoraSection,
    "reference": ReferenceSection,
    "mesh": MeshSection,
    "safety": SafetySection,
    "log": LogSection,
    "ensemble": EnsembleSection,
    "sampling": SamplingSection,
    "generation": GenerationSection,
    "grpo": GrpoSection,
    "reward": RewardSection,
    "score": ScoreSection,
    "serve": ServeSection,
}
TRAINING = ("model", "tokenizer", "data", "optim", "train", "select", "lora", "mesh", "safety", "log")
"""The sections of a training config."""

ROLLING = ("sampling", "generation", "reward")
"""Those of a training that draws its own examples, beside the section that is named after its objective."""


GENERAL: dict[str, Any] = {"seed": 0, "resume": True, "overwrite": False, "job": "train"}
"""Settings outside every section: the seed of everything random; continue the run found in the work folder; or
replace it; and the verb that the config is for."""


def fields(record: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass that are settings."""
    return [field for field in dataclasses.fields(record) if not field.metadata.keys() & ELSEWHERE.keys()]


def as_config(record: Any) -> ConfigDict:
    """A mutable config section with the settings of a dataclass instance (nested dataclasses become sections)."""
    values = {}
    for field in fields(record):
        value = getattr(record, field.name)
        values[field.name] = as_config(value) if dataclasses.is_dataclass(value) else value
    return ConfigDict(values, convert_dict=False)


def defaults(
    objective: str = "cross_entropy",
    evals: tuple[str, ...] = (),
    model: str = "decoder",
    rewards: tuple[str, ...] = (),
) -> ConfigDict:
    """The config of a training job: every section with its defaults, and those of the plug-ins it names."""
    config = ConfigDict(GENERAL)
    for name in TRAINING:
        config[name] = as_config(SECTIONS[name]())
    config.model.kind = model
    config.model.arch = as_config(plugins.load("models", model).Config())
    method = plugins.load("objectives", objective)
    if hasattr(method, "needs_reference"):
        config.reference = as_config(ReferenceSection())
    own = getattr(method, "SECTION", "objective")  # the rollouts and the loss share a section
    config.objective = ConfigDict()
    config[own] = as_config(method.Config())
    config.objective.name = objective
    if own != "objective":
        for name in ROLLING:
            config[name] = as_config(SECTIONS[name]())
        config.rewards = ConfigDict({name: as_config(plugins.load("rewards", name).Config()) for name in rewards})
    config.phases = ConfigDict()
    config.evals = ConfigDict({name: as_config(plugins.load("evals", name).Config()) for name in evals})
    return config


def with_plugin(config: ConfigDict, name: str, kind: str, plugin: str) -> ConfigDict:
    """The config with a section `name` that holds the settings of a plug-in of this kind, and its name."""
    config[name] = as_config(plugins.load(kind, plugin).Config())
    config[name].name = plugin
    return config


def for_recipe(recipe: str, evals: tuple[str, ...] = ()) -> ConfigDict:
    """The config of `gramjax run`: the settings that its steps share, those of the recipe, and phases to fill."""
    config = for_rows("run", (*TRAINING, "generation"))
    config.evals = ConfigDict({name: as_config(plugins.load("evals", name).Config()) for name in evals})
    config.phases = ConfigDict()
    return with_plugin(config, "recipe", "recipes", recipe)


def for_rows(job: str, sections: tuple[str, ...]) -> ConfigDict:
    """The config of a job that reads rows and writes rows: the named sections with their defaults."""
    config = ConfigDict(GENERAL)
    config.job = job
    for name in sections:
        config[name] = as_config(SECTIONS[name]())
    if "model" in sections:
        config.model.arch = as_config(plugins.load("models", config.model.kind).Config())
    return config


def section(values: Any, record: type[T], where: str) -> T:
    """A frozen record from a config section (or a dict read from `config.json`).

    Raises UserError naming the field for an unknown or missing key and for NaN or infinite numbers.
    """
    fields = {f.name: f for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    # `objective.name` says which record this is, `model.arch` is a record of its own
    given = {key: value for key, value in values.items() if key in fields or key not in ("name", "arch")}
    if unknown := sorted(set(given) - set(fields)):
        raise UserError(f"unknown setting config.{where}.{unknown[0]} (known: {', '.join(sorted(fields))})")
    out: dict[str, Any] = {}
    for name, value in given.items():
        default: Any = fields[name].default
        if dataclasses.is_dataclass(default) and not isinstance(value, type(default)):
            value = section(value, type(default), f"{where}.{name}")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{where}.{name} is {value}; give a finite number")
        out[name] = value
    return record(**out)
