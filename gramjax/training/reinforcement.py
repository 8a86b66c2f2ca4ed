"""From a config to a source of rollouts: prompts, rewards, and how samples become batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gramjax.core import config as configs
from gramjax.core import plugins, sharding
from gramjax.core.errors import DataError, UserError
from gramjax.core.reinforcement import GrpoSection, RewardSection
from gramjax.data import pipeline, readers
from gramjax.data import rows as row_types
from gramjax.data.rows import Drop, Tally
from gramjax.data.text import Renderer, example
from gramjax.generation.rewards import Resources, Rewards
from gramjax.generation.rollouts import Plan, Prompts, Rollouts, exact, whole
from gramjax.generation.sampler import prompt_tokens, template_extras
from gramjax.generation.valuation import Valuer
from gramjax.scoring.reading import Layout
from gramjax.scoring.reward_model import Settings
from gramjax.training.ends import end_ids_of
from gramjax.training.inheritance import inherit
from gramjax.training.sampling import open_sampler
from gramjax.training.scoring import open_reward_model

ROW_TYPES = (row_types.PROMPT_ONLY,)
TOO_LONG = "offline solutions longer than config.sampling.max_tokens"


def build_source(
    config: Any, network: Any, grpo: GrpoSection, put: Callable[[Any], Any]
) -> tuple[Rollouts, GrpoSection, dict[str, Any]]:
    """The source of rollouts of a training, the settings of its loss, and what became of its rows."""
    train = configs.section(config.train, configs.TrainSection, "train")
    sampling = configs.section(config.sampling, configs.SamplingSection, "sampling")
    generation = configs.section(config.generation, configs.GenerationSection, "generation")
    combined = configs.section(config.reward, RewardSection, "reward")
    data = configs.section(config.data, configs.DataSection, "data")
    grpo = dataclasses.replace(grpo, temperature=sampling.temperature)
    end_ids = end_ids_of(network)
    check(grpo, sampling, train, end_ids)
    found = readers.read_all(data.train, data, ROW_TYPES)
    prompts, dropped = read_prompts(found, network, data, grpo, sampling.max_tokens)
    resources = Resources(
        network.renderer, end_ids, network.mesh, config.seed, combined.processes, sampling.max_tokens,
        functools.partial(open_judge, config), functools.partial(open_writer, config),
    )  # fmt: skip
    plug_ins = {name: (plugins.load("rewards", name), values) for name, values in config.rewards.items()}
    rewards = Rewards.open(plug_ins, combined, resources)
    combined = dataclasses.replace(combined, correct=combined.correct or rewards.correct)
    if sharding.share_of_rows(network.mesh, jax.process_index())[1] != jax.process_count():
        raise UserError("rollouts need rows for every process: keep config.mesh.tensor and context inside one")
    shards = network.mesh.shape["data"] * network.mesh.shape["fsdp"]
    steps = train.steps or int(train.epochs * len(prompts.rows) * grpo.iterations) // grpo.prompts_per_step
    if steps < 1:
        raise UserError(
            f"config.train.epochs={train.epochs:g} of {len(prompts.rows)} prompts is less than one step of "
            f"config.grpo.prompts_per_step={grpo.prompts_per_step}"
        )
    plan = Plan(
        grpo, sampling, generation, config.seed, steps, shards * train.grad_accum, data.packing, hasattr(grpo, "gamma")
    )
    source = Rollouts(
        plan, prompts, network.model, network.renderer, end_ids, rewards, Valuer(grpo, combined, rewards.names,
        rewards.weights), put, jax.process_index(), jax.process_count(),
    )  # fmt: skip
    return source, grpo, readers.counts(found, len(prompts.rows), dropped)


def model_config(config: Any, path: str, tokenizer: str, max_length: int) -> Any:
    """The config of a second model beside the one that is trained: rendered as it was trained, on the same devices."""
    made = configs.for_rows("score", ("model", "tokenizer", "data", "mesh", "generation"))
    made.model.path, made.tokenizer.path, made.seed = path, tokenizer, config.seed
    made.mesh, made.generation = config.mesh, config.generation
    given = {"data.max_length": max_length} if max_length else {}
    made.data.max_length = max_length or made.data.max_length
    inherit(made, given)
    return made


def open_judge(config: Any, path: str, tokenizer: str, max_length: int, settings: Settings, batch_size: int) -> Any:
    """A reward model for the reward `preference`."""
    return open_reward_model(model_config(config, path, tokenizer, max_length), settings, Layout(batch_size))


def open_writer(config: Any, path: str, tokenizer: str, max_length: int) -> Any:
    """A judge that writes, for the reward `preference`."""
    return open_sampler(model_config(config, path, tokenizer, max_length))


def check(
    grpo: GrpoSection, sampling: configs.SamplingSection, train: configs.TrainSection, end_ids: Sequence[int]
) -> None:
    """Raise UserError for settings that do not go together."""
    if sampling.temperature <= 0:
        raise UserError("config.sampling.temperature is 0: reinforcement learning learns from drawn answers")
    for name in ("n", "num_beams"):
        if getattr(sampling, name) != 1:
            raise UserError(f"config.sampling.{name}={getattr(sampling, name)}: answers to a prompt are drawn, "
                            "config.grpo.group_size of them")  # fmt: skip
    if train.batch_size != configs.TrainSection.batch_size:
        raise UserError(
            f"config.train.batch_size={train.batch_size}: a step is counted in prompts here; set "
            "config.grpo.prompts_per_step and config.grpo.group_size"
        )
    if not exact(sampling) and (grpo.old_logprobs == "sampler" or grpo.correction != "none"):
        raise UserError(
            "config.grpo.old_logprobs=sampler and config.grpo.correction need the sampler's log-probabilities under "
            "the policy: leave config.sampling.top_k, top_p, min_p and repetition_penalty off, or keep the temperature "
            "at 1"
        )
    if not whole(sampling) and grpo.use_adaptive_entropy:
        raise UserError(
            "config.grpo.use_adaptive_entropy takes the entropy from what was drawn: leave config.sampling.top_k, "
            "top_p, min_p and repetition_penalty off"
        )
    if not end_ids and not sampling.stop and not sampling.stop_ids:
        raise UserError("the tokenizer has no end token: give config.sampling.stop or config.sampling.stop_ids")


def read_prompts(
    found: readers.Rows, network: Any, data: configs.DataSection, grpo: GrpoSection, max_tokens: int
) -> tuple[Prompts, Tally]:
    """The prompts of rows and the offline solutions beside them; what was left out is counted."""
    renderer: Renderer = network.renderer
    kept: list[Mapping[str, Any]] = []

    def encode(row: Mapping[str, Any]) -> Any:
        ids = prompt_tokens(row, renderer)
        if not ids:
            raise Drop("empty prompt")
        kept.append(row)
        return example((ids, [0.0] * len(ids)))

    examples = pipeline.encode_rows(found.rows, encode, data, network.model.config.vocab_size)
    tokens = [item[0].tokens[0].tolist() for item in examples.items]
    longest, most = max(len(ids) for ids in tokens), network.model.config.max_position_embeddings
    if longest + max_tokens > most:
        raise UserError(
            f"the longest prompt has {longest} tokens, with config.sampling.max_tokens={max_tokens} that is more than "
            f"the model was made for ({most}): lower config.data.max_length or config.sampling.max_tokens"
        )
    dropped = Tally(found.dropped)
    dropped.merge(examples.dropped)
    facts = {"files": found.files, "prompts": examples.fingerprint()}
    if grpo.offline_fraction <= 0:
        return Prompts(kept, tokens, facts=facts), dropped
    made = [
        solutions_of(row, ids, renderer, grpo.offline_column, max_tokens, dropped) for row, ids in zip(kept, tokens)
    ]
    if not any(ids for ids, _ in made):
        raise DataError(f"config.grpo.offline_fraction: no row has a usable solution in column {grpo.offline_column!r}")
    return Prompts(kept, tokens, [ids for ids, _ in made], [texts for _, texts in made], facts), dropped


def solutions_of(
    row: Mapping[str, Any], prompt: Sequence[int], renderer: Renderer, column: str, max_tokens: int, dropped: Tally
) -> tuple[list[list[int]], list[str]]:
    """The offline solutions of a row as tokens of a completion, and as texts; those too long are counted."""
    given = row.get(column) or []
    given = [given] if isinstance(given, str) else list(given)
    ids, texts = [], []
    for text in given:
        if not isinstance(text, str):
            raise DataError(f"row {row['id']!r}: {column!r} holds a {type(text).__name__}; texts were expected")
        answer: Any = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        try:
            whole, _ = renderer.completion(row["prompt"], answer, **template_extras(row))
        except Drop:
            whole = None
        if whole is not None and list(whole[: len(prompt)]) != list(prompt):
            raise DataError(f"row {row['id']!r}: the chat template writes another prompt before a given answer than "
                            "before one to be drawn; offline solutions cannot stand in its place")  # fmt: skip
        if whole is None or len(whole) - len(prompt) > max_tokens:
            dropped.add(TOO_LONG, str(row["id"]))
            continue
        ids.append(list(whole[len(prompt) :]))
        texts.append(text)
    return ids, texts
