"""Problems with a right answer, each answered several times: how much is solved, and how much of that is luck.

avg@k, maj@k and pass@j with the errors of drawing and of the choice of problems, how often the greedy answer tells
another story than the draws, and how many problems are a matter of luck (`core.repeated`).
"""

import collections
import dataclasses
import statistics as summary
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax

import gramjax
from gramjax.core import repeated
from gramjax.core.config import GenerationSection, SamplingSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import math_answers, math_prompts
from gramjax.data.rows import PROMPT_ONLY, Drop, Tally
from gramjax.generation.request import LENGTH, Completion, Request, Statistics, wrong
from gramjax.generation.sampler import Sampler, request

ROW_TYPES = (PROMPT_ONLY,)
SAMPLES = True
"""`evaluate` is given a sampler, made with `config.generation`."""
GOES_ON = True
"""`evaluate` is given the rows that the same evaluation wrote before it was stopped."""

ERROR = "error"
"""Reason of an answer that the grader failed on."""
AUTO = "auto"
WHERE = "evals.math"


@dataclasses.dataclass(frozen=True)
class Config:
    """How problems are asked, how often, and how answers are read."""

    repeats: int = 8
    """Answers drawn to each problem, k."""
    greedy: bool = True
    """Also one greedy answer to each, for `greedy_accuracy` and `greedy_flip_rate`."""
    sampling: SamplingSection = SamplingSection(max_tokens=2048, temperature=0.6, top_p=0.95)
    """How answers are drawn; their number is `repeats`."""
    generation: GenerationSection = GenerationSection()
    kind: str = AUTO
    """Where the answer stands in a reply: `boxed`, `number` (after `####`, in a box, or the last one), `choice` (a
    letter), `exact` (the whole reply); auto: the column `answer_kind`, which published sets get, else `boxed`."""
    column: str = "answer"
    """Column with the right answer, or with a list of right ones (without it, `ground_truth`)."""
    after_think: bool = False
    """Only what follows the first `</think>` counts; a reply without it is wrong."""
    template: str = math_prompts.AUTO
    """What is asked, with `{problem}` in it; auto: the package's request for steps and a final box; empty: the problem
    alone."""
    distractor: str = ""
    """Robustness: copies of a paragraph that asks to `add_one` to the result, or for the result `times_seven`, in front
    of the problem, between marks that say to ignore them; empty: none."""
    distractor_copies: int = 100
    pass_at: tuple[int, ...] = ()
    """The j of pass@j, at most `repeats`; empty: powers of two, and `repeats`."""
    uncertain: tuple[float, float] = (0.25, 0.75)
    """A problem is uncertain when its share of right answers lies between these."""
    group_size: int = 8
    """Size of the groups of `zero_advantage@G`, the share that would teach GRPO nothing; needs as many repeats."""
    keep_completions: bool = True
    """Write every reply beside its verdict."""
    limit: int = 0
    """Ask only the first problems (of each language, where rows have one); 0: all."""
    seed: int = 0
    """Of the draws; they depend on it and on the id of a problem only."""

    def __post_init__(self) -> None:
        problems = [p.replace("config.", f"config.{WHERE}.") for p in wrong(self.sampling)]
        problems += [f"config.{WHERE}.{name} is {value}; it must be at least {least}" for name, value, least in (
            ("repeats", self.repeats, 1), ("group_size", self.group_size, 0), ("limit", self.limit, 0)
        ) if value < least]  # fmt: skip
        if self.sampling.n != 1 or self.sampling.num_beams != 1:
            problems.append(f"config.{WHERE}.sampling: set repeats, not n; and no beams, they would not be draws")
        if self.sampling.temperature == 0 and self.repeats > 1:
            problems.append(f"config.{WHERE}.sampling.temperature is 0: all {self.repeats} repeats would be the same")
        if self.kind not in (AUTO, *math_answers.KINDS):
            problems.append(
                f"config.{WHERE}.kind is {self.kind!r}; choose one of auto, {', '.join(math_answers.KINDS)}"
            )
        if not 0 <= self.uncertain[0] < self.uncertain[1] <= 1:
            problems.append(f"config.{WHERE}.uncertain is {self.uncertain}; two rising numbers from 0 to 1")
        if outside := [j for j in self.pass_at if not 1 <= j <= self.repeats]:
            problems.append(f"config.{WHERE}.pass_at has {outside[0]}; 1 to {self.repeats} (repeats) is possible")
        if problems:
            raise UserError("; ".join(problems))
        math_prompts.check(self.template, self.distractor, self.distractor_copies, WHERE)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A row as it is asked."""

    row: Mapping[str, Any]
    golds: tuple[str, ...]
    kind: str
    requests: tuple[Request, ...]
    """The draws and, where wanted, the greedy answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One reply, graded."""

    correct: bool
    text: str | None
    """What stands there as the answer; None: nothing."""
    reason: str
    completion: Completion


def form(text: str | None, kind: str) -> Hashable:
    """An answer as it is counted in a vote: the same for equal numbers and for equal expressions."""
    if text is None or kind in ("choice", "exact"):
        return text
    plain = math_answers.normalised(text[: math_answers.MOST_CHARACTERS])
    value = math_answers.value_of(plain)
    return plain if value is None else value


def evaluate(
    sampler: Sampler,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    done: Sequence[Mapping[str, Any]] = (),
) -> Iterator[tuple[str, Any]]:
    """Ask every problem `repeats` times; yield (name, value), plain numbers first, then tables (JSON-able).

    A reply without an answer is wrong. One that the grader fails on is wrong and counted in `num_errors`. `write_row`
    receives one dict per problem, in the order of the rows, as soon as it and those before it are answered; `done` are
    those that it received before the evaluation was stopped. Raises DataError when no problem can be asked.
    """
    if "tokens" not in sampler.model.config.heads:
        raise UserError(f"answers need the head 'tokens'; the model has {', '.join(sampler.model.config.heads)}")
    rows = first(rows, config.limit)
    skipped, used, records = Tally(), Statistics(), [dict(row) for row in done]
    known = {row["id"] for row in done}
    asked = problems([row for row in rows if str(row["id"]) not in known], sampler, config, skipped)
    for problem, completions in sampler.answered(asked, lambda problem: problem.requests, used):
        drawn, *once = [[graded(c, problem, config) for c in samples] for samples in completions]
        records.append(record(problem, drawn, once[0][0] if once else None, config))
        if write_row is not None:
            write_row({k: v for k, v in records[-1].items() if k != "completions" or config.keep_completions})
    if not records:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(rows)} problems can be asked: {reasons or 'there are no rows'}")
    greedy = [r["greedy"]["verdict"] for r in records] if config.greedy else None
    verdicts = [r["verdicts"] for r in records]
    forms = [[form(text, r["kind"]) for text in r["answers"]] for r in records]
    found = dict(repeated.summarise(verdicts, forms, greedy, config.pass_at, config.uncertain, config.group_size))
    tables = {name: value for name, value in found.items() if isinstance(value, dict | list)}
    yield from ((name, value) for name, value in found.items() if name not in tables)
    yield from replies(records, config)
    languages = parts(records, "language")
    yield from over_languages(languages)
    yield "num_skipped", skipped.total
    yield from tables.items()
    for name, table in (("by_subset", parts(records, "subset")), ("by_language", languages)):
        if table:
            yield name, table
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}
    yield "settings", dataclasses.asdict(config)
    yield "engine", engine(sampler, used) | {"answered_before": len(done)}


def first(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """The first rows of each language; all with a limit of 0."""
    seen = collections.Counter[str]()
    out = []
    for row in rows:
        language = str(row.get("language", ""))
        seen[language] += 1
        if not limit or seen[language] <= limit:
            out.append(row)
    return out


# -- one problem -------------------------------------------------------------------------------------------------------


def problems(rows: Sequence[Mapping[str, Any]], sampler: Sampler, config: Config, skipped: Tally) -> Iterator[Problem]:
    """The rows that can be asked, made when it is their turn; the others are counted."""
    drawn = dataclasses.replace(config.sampling, n=config.repeats)
    greedy = dataclasses.replace(config.sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    for row in rows:
        given = row.get(config.column) if row.get(config.column) is not None else row.get("ground_truth")
        golds = tuple(str(g) for g in (given if isinstance(given, list | tuple) else [given]) if g not in (None, ""))
        if not golds:
            skipped.add(f"no right answer in column '{config.column}'", str(row["id"]))
            continue
        kind = config.kind if config.kind != AUTO else str(row.get("answer_kind") or "boxed")
        if kind not in math_answers.KINDS:
            raise DataError(f"row {row['id']!r}: 'answer_kind' is {kind!r}; one of {', '.join(math_answers.KINDS)}")
        shown = math_prompts.question(row, kind, config.template, config.distractor, config.distractor_copies)
        wanted = (drawn, greedy) if config.greedy else (drawn,)
        try:
            made = tuple(request(shown, sampler, sampling, config.seed) for sampling in wanted)
        except Drop as drop:
            skipped.add(f"{drop.args[0]} (config.data.max_length)", str(row["id"]))
            continue
        yield Problem(row, golds, kind, made)


def graded(completion: Completion, problem: Problem, config: Config) -> Answer:
    """A reply and whether it is right."""
    try:
        text = math_answers.extract(completion.text, problem.kind, config.after_think)[0]
        verdict = math_answers.grade(completion.text, problem.golds, problem.kind, config.after_think)
    except Exception:  # a reply that breaks the grader must not end hours of answering
        return Answer(False, None, ERROR, completion)
    return Answer(bool(verdict.correct), text, verdict.reason, completion)


def record(problem: Problem, drawn: Sequence[Answer], greedy: Answer | None, config: Config) -> dict[str, Any]:
    """A problem with all that is known of its answers; lists have one entry per repeat."""
    row, gold = problem.row, problem.golds[0]
    own: dict[str, Any] = {}
    if greedy is not None:
        own["greedy"] = {"verdict": greedy.correct, "answer": greedy.text, "reason": greedy.reason,
                         "length": len(greedy.completion.token_ids), "finish_reason": greedy.completion.finish_reason,
                         **({"completion": greedy.completion.text} if config.keep_completions else {})}  # fmt: skip
    if problem.kind == "number" and (value := _value(gold)) is not None:
        own["verdicts_compatible"] = [_compatible(answer, value) for answer in drawn]
        if greedy is not None:
            own["greedy"]["verdict_compatible"] = _compatible(greedy, value)
    if config.distractor and (value := _value(gold)) is not None:
        own["misled"] = [_value(a.text) == math_prompts.misled(value, config.distractor) for a in drawn]
    return {
        "id": str(row["id"]),
        "subset": str(row.get("subset") or ""),
        **({"language": str(row["language"])} if row.get("language") else {}),
        "gold": gold if len(problem.golds) == 1 else list(problem.golds),
        "kind": problem.kind,
        "prompt_tokens": len(problem.requests[0].tokens),
        "pass_rate": sum(answer.correct for answer in drawn) / len(drawn),
        "verdicts": [answer.correct for answer in drawn],
        "answers": [answer.text for answer in drawn],
        "reasons": [answer.reason for answer in drawn],
        "lengths": [len(answer.completion.token_ids) for answer in drawn],
        "finish_reasons": [answer.completion.finish_reason for answer in drawn],
        **own,
        "completions": [answer.completion.text for answer in drawn],
    }


def _compatible(answer: Answer, value: float) -> bool:
    """Whether MathOctopus' evaluation counts a reply as right."""
    return abs(math_answers.compatible_number(answer.completion.text) - value) < 1e-3


def _value(text: str | None) -> float | None:
    """The number that a text is, or None."""
    found = None if text is None else math_answers.value_of(math_answers.normalised(text))
    return None if found is None else float(found)


# -- all problems ------------------------------------------------------------------------------------------------------


def replies(records: Sequence[Mapping[str, Any]], config: Config) -> Iterator[tuple[str, Any]]:
    """Numbers about the replies: lengths, finished and clipped apart; answers that could not be found or graded."""
    flat = [
        (length, end == LENGTH, verdict, reason, answer)
        for r in records
        for length, end, verdict, reason, answer in zip(
            r["lengths"], r["finish_reasons"], r["verdicts"], r["reasons"], r["answers"], strict=True
        )
    ]
    greedy = [r["greedy"]["reason"] for r in records if "greedy" in r]

    def mean(values: Sequence[float]) -> float | None:
        return float(summary.fmean(values)) if values else None

    yield "mean_length", mean([length for length, *_ in flat])
    yield "mean_length_finished", mean([length for length, clipped, *_ in flat if not clipped])
    yield "mean_length_right", mean([length for length, _, right, *_ in flat if right])
    yield "mean_length_wrong", mean([length for length, _, right, *_ in flat if not right])
    yield "clipped_share", mean([float(clipped) for _, clipped, *_ in flat])
    yield "no_answer_share", mean([float(answer is None) for *_, answer in flat])
    yield "n_errors", sum(reason == ERROR for *_, reason, _ in flat) + greedy.count(ERROR)
    for name, column in (("avg@k_compatible", "verdicts_compatible"), ("misled_share", "misled")):
        shares = [sum(r[column]) / len(r[column]) for r in records if column in r]
        if shares:
            yield name, mean(shares)
    once = [float(r["greedy"]["verdict_compatible"]) for r in records if "verdict_compatible" in r.get("greedy", {})]
    if once:
        yield "greedy_compatible", mean(once)
    counts = collections.Counter(reason for *_, reason, _ in flat)
    yield "reasons", {reason: count / len(flat) for reason, count in counts.most_common()}


def parts(records: Sequence[Mapping[str, Any]], column: str) -> dict[str, dict[str, Any]]:
    """avg@k with its errors, and the share of right greedy answers, for every subset or language; empty where there
    are not several."""
    names = sorted({r.get(column, "") for r in records})
    if len(names) < 2:
        return {}
    out = {}
    for name in names:
        own = [r for r in records if r.get(column, "") == name]
        found = repeated.average([r["verdicts"] for r in own])
        out[name or "(none)"] = {
            "num_problems": len(own),
            "avg@k": found.mean,
            "sampling_error": repeated.known(found.sampling_error),
            "standard_error": repeated.known(found.total_error),
        }
        if all("greedy" in r for r in own):
            out[name or "(none)"]["greedy_accuracy"] = sum(r["greedy"]["verdict"] for r in own) / len(own)
        for key, values in compatible(own).items():
            out[name or "(none)"][key] = values
    return out


def compatible(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same shares as MathOctopus' evaluation counts them, where all answers are numbers."""
    out = {}
    if all("verdicts_compatible" in r for r in records):
        out["avg@k_compatible"] = summary.fmean(summary.fmean(r["verdicts_compatible"]) for r in records)
    if all("verdict_compatible" in r.get("greedy", {}) for r in records):
        out["greedy_compatible"] = summary.fmean(r["greedy"]["verdict_compatible"] for r in records)
    return out


def over_languages(languages: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Means over languages, each counting the same however many problems it has."""
    for key in ("avg@k", "greedy_accuracy", "avg@k_compatible", "greedy_compatible"):
        if languages and all(key in found for found in languages.values()):
            yield f"mean_of_languages_{key}", summary.fmean(found[key] for found in languages.values())


def engine(sampler: Sampler, used: Statistics) -> dict[str, Any]:
    """What answered: greedy answers are the same bit for bit only where all of this is."""
    leaves = jax.tree.leaves(sampler.weights)
    device = jax.devices()[0]
    return {
        "sampler": f"gramjax {gramjax.__version__}",
        "jax": jax.__version__,
        "backend": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "compute_dtype": str(jax.numpy.dtype(sampler.model.compute_dtype)),
        "weights_dtype": sorted({str(leaf.dtype) for leaf in leaves if hasattr(leaf, "dtype")}),
        "slots": sampler.settings.slots,
        "end_ids": list(sampler.end_ids),
        "max_length": sampler.renderer.section.max_length,
        "tokens": used.tokens,
        "seconds": round(used.seconds, 3),
        "tokens_per_second": round(used.tokens_per_second, 1),
    }
