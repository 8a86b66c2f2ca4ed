"""A reward model ready for use: answers to rewards, pairs of answers to preferences.

One object for evaluation, ranking, scoring, serving and reinforcement learning, so that all of them give one score.

    score      a scalar head; a pair is decided by the difference of its rewards
    judge      GRAM's verdict on a pair in both orders (arXiv 2506.14175, equation 4); no score for one answer alone
    implicit   a policy trained by DPO: r = beta (log pi(y | x) - log pi_reference(y | x)) (Rafailov et al. 2023)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gramjax.core import statistics
from gramjax.core.errors import UserError
from gramjax.data.branches import Tokens
from gramjax.data.rows import Drop, Text
from gramjax.scoring import reading
from gramjax.scoring.reading import Layout, Reader

ORDERS = ("both", "first", "second")
"""How a judge is shown a pair: in both orders, or with the first or the second answer standing first."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are scored."""

    method: str = "auto"
    """`judge` (verdict tokens), `score` (scalar head), `implicit` (log-probability of the answer, against a reference),
    or `auto`: `score` if the model has that head, else `judge`."""
    agg: str = "prob"
    """Average of the two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "shorten_responses"
    """What happens to texts longer than config.data.max_length (see config.data.overlong; empty: the same as there)."""


def settings_of(record: Any) -> Settings:
    """The settings from a plug-in's config or a config section, which has fields of the same names."""
    return Settings(**{field.name: getattr(record, field.name) for field in dataclasses.fields(Settings)})


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of one answer."""

    value: float
    """NaN if there is none."""
    num_tokens: int = 0
    shortened: bool = False
    """Whether the text had to be cut to fit."""
    reason: str = ""
    """Why there is no reward."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a model says about a pair of answers; the fields of one order are NaN where it was not asked."""

    score: float
    """Probability that the first answer is better; NaN if the pair could not be judged."""
    log_score: float = math.nan
    margin: float = math.nan
    """The logit of it, without the effect of the order (judge), or the difference of rewards."""
    margin_first: float = math.nan
    """Logit of the verdict for the answer shown first, with the first answer standing first ..."""
    margin_second: float = math.nan
    """... and with the second answer standing first."""
    rewards: tuple[float, float] = (math.nan, math.nan)
    """Rewards of the two answers; a judge's are the masses of its two verdicts."""
    verdict_mass: float = 1.0
    """Probability of the two verdicts together where a verdict is expected (1 with `candidates`)."""
    num_tokens: int = 0
    shortened: bool = False
    reason: str = ""
    """Why it could not be judged."""

    @property
    def p_first(self) -> float:
        """Probability of "the one shown first" when the first answer stands first."""
        return float(statistics.sigmoid(self.margin_first))

    @property
    def p_second(self) -> float:
        """Probability of "the one shown first" when the second answer stands first."""
        return float(statistics.sigmoid(self.margin_second))


@dataclasses.dataclass(frozen=True)
class Question:
    """An answer, or a pair of answers, as the sequences to be read."""

    sequences: tuple[Tokens, ...]
    """Empty if it cannot be asked."""
    shortened: bool = False
    reason: str = ""
    """Why it cannot be asked."""
    order: str = ""
    """How a judge is shown a pair."""
    prompt: str = ""
    """Stands for the prompt of an answer alone: those with one prompt may be read together."""
    num_tokens: int = 0
    """Of the longest sequence, or of what was too long."""


Answer = tuple[Text | None, Text]
"""(prompt, answer), or (None, a text or a conversation that holds both)."""


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A network with its weights in use, and how it is read. Build it with `build`."""

    model: Any
    weights: Any
    renderer: Any
    settings: Settings
    layout: Layout
    kind: str
    """`score`, `judge` or `implicit`."""
    reader: Reader
    reference: Any = None
    """Weights in use of the reference of an implicit reward; None: the reward is beta log pi(y | x)."""

    def rewards(self, items: Sequence[Answer]) -> list[Reward]:
        """The reward of every answer. Answers to one prompt share its computation.

        Raises UserError for a judge, which has none for an answer alone.
        """
        asked = [self.ask_reward(item) for item in items]
        return [self.reward(question, value) for question, value in zip(asked, self.read(asked), strict=True)]

    def compare(
        self, items: Sequence[tuple[Text, Text, Text]], orders: Sequence[str] | None = None
    ) -> list[Comparison]:
        """What the model says of every (prompt, first answer, second answer); `orders` (of `ORDERS`, default all
        `both`) is for a judge only. Texts that cannot be judged have a `reason` instead of a score."""
        shown = ["both"] * len(items) if orders is None else list(orders)
        asked = [self.ask_pair(item, order) for item, order in zip(items, shown, strict=True)]
        return [self.comparison(question, value) for question, value in zip(asked, self.read(asked), strict=True)]

    # -- in three steps, for callers who collect questions: ask, read, and what the values mean -----------------------

    def ask_reward(self, item: Answer, markup: bool = False) -> Question:
        """The question for the reward of (prompt, answer); without a prompt (None) the answer is a text or a
        conversation that holds both, with `markup` one that a chat template wrote. Raises UserError for a judge, and
        for an implicit reward of a text whose prompt nobody knows."""
        if self.kind == "judge":
            raise UserError(
                "this model judges pairs: it has no score for one answer alone; give a reference answer to compare with"
            )
        prompt, answer = item
        if prompt is not None:
            return self._question(lambda renderer: [renderer.completion(prompt, answer)], repr(prompt))
        if isinstance(answer, str):
            if self.kind == "implicit":
                raise UserError("an implicit reward is that of an answer to a prompt: give the two apart")
            return self._question(lambda renderer: [(renderer.markup if markup else renderer.text)(answer)])
        return self._question(lambda renderer: [renderer.completion(answer[:-1], answer[-1:])], repr(answer[:-1]))

    def ask_pair(self, item: tuple[Text, Text, Text], order: str = "both") -> Question:
        """The question about (prompt, first answer, second answer)."""
        if order not in ORDERS:
            raise ValueError(f"unknown order {order!r}; one of {', '.join(ORDERS)}")
        prompt, first, second = item
        if self.kind != "judge":
            return self._question(lambda renderer: renderer.completion_pair(prompt, first, second))
        shown = {"first": [(first, second)], "second": [(second, first)]}.get(order, [(first, second), (second, first)])
        made = self._question(lambda renderer: [(renderer.judge(prompt, *pair), None) for pair in shown])
        return dataclasses.replace(made, order=order)

    def reward(self, asked: Question, values: np.ndarray) -> Reward:
        """The reward from what was read."""
        if not asked.sequences:
            return Reward(math.nan, reason=asked.reason)
        return Reward(float(values[0]), asked.num_tokens, asked.shortened)

    def comparison(self, asked: Question, values: np.ndarray) -> Comparison:
        """The comparison from what was read."""
        if not asked.sequences:
            return Comparison(math.nan, reason=asked.reason)
        said = self._verdict(values, asked.order) if self.kind == "judge" else difference(*values)
        return dataclasses.replace(said, num_tokens=asked.num_tokens, shortened=asked.shortened)

    def _question(self, render: Callable[[Any], Sequence[Any]], prompt: str = "") -> Question:
        """The sequences that `render` makes with a renderer, or why there are none."""
        renderer = strict = self.renderer
        if self.settings.overlong:
            section = dataclasses.replace(renderer.section, overlong=self.settings.overlong)
            strict = dataclasses.replace(renderer, section=dataclasses.replace(section, overlong="drop"))
            renderer = dataclasses.replace(renderer, section=section)
        try:
            try:
                made, cut = render(strict), False
            except Drop:
                made, cut = render(renderer), True
        except Drop as drop:
            return Question((), reason=str(drop), num_tokens=drop.length)
        scored = self.kind == "implicit"
        out = []
        for ids, mask in made:
            tokens = np.asarray(ids, np.int32)
            out.append(Tokens(tokens, np.asarray(mask, np.float32) if scored else None))
        return Question(tuple(out), cut, prompt=prompt, num_tokens=max(len(sequence.tokens) for sequence in out))

    def read(self, asked: Sequence[Question]) -> list[np.ndarray]:
        """What the reader says of the sequences of each question; those with one `prompt` may share its computation."""
        flat = [sequence for question in asked for sequence in question.sequences]
        starts = np.cumsum([0, *(len(question.sequences) for question in asked)])
        own = [list(range(start, stop)) for start, stop in zip(starts, starts[1:])]
        groups: dict[Any, list[int]] = {}
        for number, (question, places) in enumerate(zip(asked, own, strict=True)):
            groups.setdefault(question.prompt or number, []).extend(places)
        if not flat:
            return [np.zeros(0) for _ in asked]
        together, mesh = [group for group in groups.values() if group], self.model.mesh
        values = reading.read_all(self.reader, self.weights, flat, together, self.layout, mesh)
        if self.kind == "implicit":
            if self.reference is not None:
                values = values - reading.read_all(self.reader, self.reference, flat, together, self.layout, mesh)
            values = self.settings.beta * values
        return [values[part] for part in own]

    @property
    def programs(self) -> int:
        """Shapes that the reader was compiled for so far."""
        return self.reader._cache_size()  # type: ignore[attr-defined]

    def warm_up(self) -> int:
        """Compile every shape that `layout` allows (its `buckets` and `sizes`); how many there are."""
        scored = self.kind == "implicit"
        return reading.warm_up(self.reader, self.weights, self.layout, self.model.mesh, scored)

    def _verdict(self, logits: np.ndarray, order: str) -> Comparison:
        """A judge's comparison from its verdict logits [orders, 2 or 3]."""
        margins, log_mass = logits[:, 0] - logits[:, 1], np.zeros(len(logits))
        if logits.shape[1] == 3:
            log_mass = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[:, 2]
        mass = float(np.mean(np.exp(log_mass)))
        if order == "both":
            pair = statistics.margin_score(margins[:1], margins[1:], self.settings.agg, log_mass[:, None])
            score, total = float(pair.score[0]), 1.0 if self.settings.agg == "logit" else mass
            return Comparison(
                score, float(pair.log_score[0]), float(pair.margin[0]), float(margins[0]), float(margins[1]),
                (total * score, total * (1 - score)), mass,
            )  # fmt: skip
        shown = float(margins[0])
        margin = shown if order == "first" else -shown
        score = float(statistics.sigmoid(margin))
        return Comparison(
            score,
            float(statistics.log_sigmoid(margin)),
            margin,
            margin_first=shown if order == "first" else math.nan,
            margin_second=math.nan if order == "first" else shown,
            rewards=(mass * score, mass * (1 - score)),
            verdict_mass=mass,
        )


def difference(first: float, second: float) -> Comparison:
    """A comparison by two rewards."""
    margin = float(first - second)
    score, log_score = float(statistics.sigmoid(margin)), float(statistics.log_sigmoid(margin))
    return Comparison(score, log_score, margin, rewards=(float(first), float(second)))


def check(model: Any, settings: Settings) -> str:
    """The kind of the reward model. Raises UserError for settings that do not fit it."""
    kind = reading.kind_of(model.config.heads, settings.method)
    for name, value, known in (
        ("agg", settings.agg, ("prob", "logit")),
        ("label_space", settings.label_space, ("candidates", "full")),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}; use {' or '.join(known)}")
    return kind


def make_reader(model: Any, renderer: Any, settings: Settings) -> Reader:
    """The compiled reader of a model, to be kept for many `build`s. Raises UserError for settings that do not fit."""
    kind = check(model, settings)
    ids = renderer.verdict_ids if kind == "judge" else (-1, -1)
    return reading.make_reader(model, kind, ids, settings.label_space == "full", model.mesh)


def build(
    model: Any,
    weights: Any,
    renderer: Any,
    settings: Settings = Settings(),
    layout: Layout = Layout(),
    reader: Reader | None = None,
    reference: Any = None,
) -> RewardModel:
    """A reward model from a network and its packed weights. Raises UserError for settings that do not fit it."""
    if layout.batch_size < 1:
        raise UserError(f"batch_size is {layout.batch_size}; it must be positive")
    kind = check(model, settings)
    if layout.share and not reading.shares(model):
        layout = dataclasses.replace(layout, share=False)
    reader = reader or make_reader(model, renderer, settings)
    return RewardModel(model, weights, renderer, settings, layout, kind, reader, reference)
