"""GRAM-R2 (arXiv 2509.02492): a reward model that explains itself, trained on its own judgements in rounds.

    base        optional: GRAM's stage 1 on unlabelled pairs; otherwise config.model is the base
    prover      a preference-proving model, from pairs with human rationales
    proofs      proofs for labelled pairs without rationales, the best of k by score (5), as rationales
    R0          the judge, trained on them
    round i     R(i-1) judges new pairs n times; majority, vote share and probability decide which labels are kept; the
                prover proves them; rules and balance; R(i) is trained on everything so far, from the base model
    final       tuning of the last judge on the human rationales

Without `labelled` rows R0 learns from the human rationales. Gold labels of unlabelled pairs (`gold`, or the label of a
preference row) are counted with and never shown. Each step is a gramjax command whose config lies beside its folder.
"""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.core import row_log
from gramjax.core.errors import UserError
from gramjax.core.recipe import Step
from gramjax.data.rationale_rules import Rules
from gramjax.generation.judging import Judging
from gramjax.generation.proving import Proving

SOURCES = ("prover", "self", "none")
ROLES = ("base", "prover", "judge", "final")


@dataclasses.dataclass(frozen=True)
class Config:
    """Rows, rounds and every threshold. `config.phases.base`, `prover`, `judge`, `final`: what differs in training."""

    pretrain: tuple[str, ...] = ()
    """Unlabelled pairs for GRAM's stage 1, after which prover and judges begin; empty: config.model is the base."""
    rationales: tuple[str, ...] = ()
    """Pairs with human rationales: they train the prover and the final tuning."""
    labelled: tuple[str, ...] = ()
    """Labelled pairs without rationales, for R0; empty: R0 learns from `rationales`."""
    unlabelled: tuple[str, ...] = ()
    """Pairs for the rounds: one source per round, or one that is cut into equal parts."""
    prover: str = ""
    """A run or Hugging Face folder that proves preferences already; empty: one is trained."""
    rounds: int = 3
    """Self-training rounds; 0: stop at R0."""
    rationale_source: str = "prover"
    """Who writes the rationales of the rounds: `prover`, `self` (the judge's own) or `none` (labels alone)."""
    init: str = "base"
    """What each round is trained from: the `base` model (config.model), or the judge of the round `previous`."""
    label_weight: float = 1.0
    """Weight of the label's token when judges are trained; 1: as published."""
    swap: bool = False
    """Train judges on each pair in the other order too, where the names of the sides can be rewritten."""
    most_per_round: int = 0
    """Most pseudo-labelled pairs that a round adds; 0: all that pass."""
    final: bool = True
    """Tune the last judge on the human rationales."""
    judging: Judging = Judging(sampling=configs.SamplingSection(max_tokens=1024, temperature=0.75, n=8))
    """How pairs are judged in the rounds."""
    proving: Proving = Proving()
    """How proofs are drawn and chosen (`rules` below are the rules of every step; its own stay as they are)."""
    rules: Rules = Rules()
    """What votes and rationales must pass."""


def needs_prover(own: Config) -> bool:
    """Whether any step has proofs written."""
    if own.labelled and own.rationale_source != "none":
        return True
    return own.rounds > 0 and own.rationale_source == "prover"


def check(own: Config, phases: Iterable[str] = ()) -> None:
    """Raise UserError for settings that cannot go together."""
    if unknown := sorted(set(phases) - set(ROLES)):
        raise UserError(f"config.phases.{unknown[0]}: the phases of this recipe are {', '.join(ROLES)}")
    if not own.rationales and needs_prover(own) and not own.prover:
        raise UserError("config.recipe.rationales is empty; give pairs with rationales, from which the prover learns")
    if own.rationale_source not in SOURCES:
        raise UserError(f"config.recipe.rationale_source={own.rationale_source!r} is not one of {', '.join(SOURCES)}")
    if own.prover and not needs_prover(own):
        raise UserError(f"config.recipe.prover={own.prover!r} would not be used: no step of this recipe writes proofs")
    if own.proving.rules != Rules():
        raise UserError("config.recipe.proving.rules would not be used: set config.recipe.rules instead")
    if own.init not in ("base", "previous"):
        raise UserError(f"config.recipe.init={own.init!r} is neither base nor previous")
    if own.rounds < 0 or (own.rounds and len(own.unlabelled) not in (1, own.rounds)):
        raise UserError(
            f"config.recipe.unlabelled has {len(own.unlabelled)} sources for {own.rounds} rounds; give one, or one each"
        )
    if not (own.labelled or own.rationales):
        raise UserError("config.recipe.labelled and config.recipe.rationales are empty: there is nothing to learn from")


def steps(config: Any, workdir: Path) -> list[Step]:
    """Every step in order."""
    return _Plan(config, workdir).steps


def begin_at(config: ConfigDict, folder: str) -> None:
    """Let a training start from the weights of a run."""
    config.model.path, config.model.step, config.model.random_weights, config.model.adapter = folder, 0, False, ""
    config.model.arch = configs.as_config(configs.plugins.load("models", config.model.kind).Config())


class _Plan:
    """The steps, written down one after the other."""

    def __init__(self, config: Any, workdir: Path) -> None:
        self.config, self.own, self.workdir = config, configs.section(config.recipe, Config, "recipe"), workdir
        self.steps: list[Step] = []
        self.base = ""
        own = self.own
        check(own, config.phases)
        labels_only = own.rationale_source == "none"
        if own.pretrain:
            self.base = self.pretrain(own.pretrain)
        self.prover = own.prover
        if needs_prover(own) and not own.prover:
            self.prover = self.train("prover", "prover", "prover", own.rationales)
        seen = own.rationales
        if own.labelled and labels_only:
            seen = own.labelled
        elif own.labelled:
            seen = (self.proofs("", own.labelled),)
        judge = self.train("R0", "judge", "label" if labels_only else "judge", seen)
        for number in range(1, own.rounds + 1):
            seen = (*seen, self.round(number, judge))
            start = judge if own.init == "previous" else ""
            judge = self.train(f"R{number}", "judge", "label" if labels_only else "judge", seen, start)
        if own.final and own.rationales:
            self.train("final", "final", "label" if labels_only else "judge", own.rationales, judge)

    def add(self, name: str, verb: str, config: ConfigDict) -> str:
        """Add a step and return its folder."""
        numbered = f"{len(self.steps):02d}-{name}"
        self.steps.append(Step(numbered, verb, config))
        return str(self.workdir / "steps" / numbered)

    # -- training -----------------------------------------------------------------------------------------------------

    def shared(self, objective: str, role: str, start: str = "") -> ConfigDict:
        """The config of a training with what its role changes. Without a `start` it begins at the base, or where the
        role says."""
        config = configs.defaults(objective)
        for section in configs.TRAINING:
            config[section] = copy.deepcopy(self.config[section])
        config.seed, config.evals = self.config.seed, copy.deepcopy(self.config.evals)
        if self.base:
            begin_at(config, self.base)
        config.update(self.config.phases.get(role, ConfigDict()))
        if start:
            begin_at(config, start)
        return config

    def pretrain(self, rows: tuple[str, ...]) -> str:
        """The base model after stage 1; returns its folder."""
        config = self.shared("generative_preference", "base")
        config.objective.stage, config.data.train, config.train.evaluate = "pretrain", rows, False
        config.evals = ConfigDict()
        return self.add("base", "train", config)

    def train(self, name: str, role: str, part: str, rows: tuple[str, ...], start: str = "") -> str:
        """A training of the prover or of a judge; returns its folder."""
        config = self.shared("rationale_preference", role, start)
        config.objective.part = part
        if part == "prover":
            config.evals = ConfigDict()
        else:
            config.objective.label_weight, config.objective.swap = self.own.label_weight, self.own.swap
        given = self.own.proving.instruction if part == "prover" else self.own.judging.instruction
        config.objective.instruction = given
        if "rationale" in config.evals:  # judged as it was trained, by the sampler of the other steps
            config.evals.rationale.judging.instruction = given
            config.evals.rationale.generation = copy.deepcopy(self.config.generation)
        config.data.train = rows
        config.train.evaluate = bool(config.train.evaluate and config.evals and config.data.valid)
        return self.add(name, "train", config)

    # -- rows in, rows out --------------------------------------------------------------------------------------------

    def annotate(self, name: str, annotator: str, model: str, path: str, **changes: Any) -> str:
        """Rows of `path` with a model's columns; returns the file."""
        config = configs.for_rows("annotate", ("model", "tokenizer", "data", "mesh", "generation"))
        for section in ("tokenizer", "data", "mesh", "generation"):
            config[section] = copy.deepcopy(self.config[section])
        config.model.attention, config.model.compute_dtype = (
            self.config.model.attention, self.config.model.compute_dtype,
        )  # fmt: skip
        config.model.path, config.data.path, config.seed = model, path, self.config.seed
        config.data.train = config.data.valid = ()
        configs.with_plugin(config, "annotator", "annotators", annotator)
        config.annotator.update(changes)
        return str(Path(self.add(name, "annotate", config)) / row_log.ROWS)

    def select(self, name: str, selection: str, path: str, **changes: Any) -> str:
        """Some rows of `path`; returns the file."""
        config = configs.for_rows("select_data", ("data",))
        config.data = copy.deepcopy(self.config.data)
        config.data.path, config.seed = path, self.config.seed
        config.data.train = config.data.valid = ()
        configs.with_plugin(config, "selection", "selection/rows", selection)
        config.selection.update(changes)
        return str(Path(self.add(name, "select_data", config)) / row_log.ROWS)

    def section(self, record: Any) -> ConfigDict:
        """A settings record as a config section."""
        return configs.as_config(record)

    def proofs(self, prefix: str, rows: tuple[str, ...]) -> str:
        """Labelled pairs with the prover's rationales, after the rules; returns the file."""
        if len(rows) != 1:
            raise UserError(f"config.recipe.labelled has {len(rows)} sources; join them into one file")
        proving = self.section(dataclasses.replace(self.own.proving, rules=self.own.rules))
        proved = self.annotate(f"{prefix}proofs", "prove_preferences", self.prover, rows[0], proving=proving)
        return self.rules(prefix, proved)

    def rules(self, prefix: str, path: str, most: int = 0) -> str:
        """Rationales that follow the rules, balanced; returns the file."""
        tokens = self.config.tokenizer.path or self.config.model.path
        rules = self.section(self.own.rules)
        return self.select(f"{prefix}rules", "sound_rationales", path, rules=rules, tokenizer=tokens, most=most)

    def round(self, number: int, judge: str) -> str:
        """The pseudo-labelled rows of one round; returns the file."""
        own, prefix = self.own, f"R{number}-"
        if len(own.unlabelled) == 1:
            source = self.select(f"{prefix}pairs", "part", own.unlabelled[0], part=number - 1, parts=own.rounds)
        else:
            source = own.unlabelled[number - 1]
        judged = self.annotate(f"{prefix}judge", "judge_pairs", judge, source, judging=self.section(own.judging))
        sure = self.select(f"{prefix}votes", "sure_votes", judged, rules=self.section(own.rules))
        if own.rationale_source == "none":
            return self.select(f"{prefix}balance", "balanced_labels", sure, rules=self.section(own.rules),
                               most=own.most_per_round)  # fmt: skip
        if own.rationale_source == "self":
            proved = self.select(f"{prefix}own", "own_rationales", sure)
        else:
            proving = self.section(dataclasses.replace(own.proving, rules=own.rules))
            proved = self.annotate(f"{prefix}proofs", "prove_preferences", self.prover, sure, proving=proving)
        return self.rules(prefix, proved, own.most_per_round)


# -- what came out -----------------------------------------------------------------------------------------------------


def summarise(config: Any, workdir: Path) -> dict[str, Any]:
    """The numbers of the steps that are done, as `rounds.json` holds them."""
    folders = {step.name.partition("-")[2]: workdir / "steps" / step.name for step in steps(config, workdir)}
    out: dict[str, Any] = {"recipe": "gram_r2", "rounds": []}
    if prover := _trained(folders.get("prover")):
        out["prover"] = prover
    if proofs := _filter("proofs", folders.get("proofs")):
        share = proofs["after"] / proofs["before"] if proofs["before"] else 0.0
        out["proofs"] = {"num_rows": proofs["before"], "kept": proofs["after"], "kept_share": share,
                         "dropped": proofs["dropped"], "mean_score": _mean_score(folders["proofs"])}  # fmt: skip
    for number in range(configs.section(config.recipe, Config, "recipe").rounds + 1):
        if found := _round(number, folders):
            out["rounds"].append(found)
    if final := _trained(folders.get("final")):
        out["final"] = {"round": -1, "name": "final", **final}
    out["rationales"] = _rationales(folders, len(out["rounds"]) - 1)
    return out


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _trained(folder: Path | None) -> dict[str, Any]:
    """Rows and test numbers of a training; nothing before it is done."""
    if folder is None or not (folder / "DONE").exists():
        return {}
    data, test = _json(folder / "data.json"), _json(folder / "eval" / "rationale.json")
    dropped = {reason: {"count": count, "first": first} for reason, (count, first) in data.get("dropped", {}).items()}
    out: dict[str, Any] = {"num_rows": data.get("rows"), "num_train": data.get("examples"), "dropped": dropped}
    if test:
        out |= {"test": test, "test_accuracy": test["accuracy"]}
    return out


def _filter(name: str, folder: Path | None) -> dict[str, Any]:
    """How many rows a step got and passed on, and why the others went."""
    found = _json(folder / row_log.SUMMARY) if folder is not None else {}
    if not found:
        return {}
    return {"name": name, "before": found["rows"], "after": found["written"], "dropped": found["refused"]}


def _rows(folder: Path | None) -> Iterator[dict[str, Any]]:
    """The rows of a step, one at a time: they hold every draw and every proof."""
    path = folder / row_log.ROWS if folder is not None else None
    if path is not None and path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def _mean_score(folder: Path) -> float | None:
    """Mean score (5) of the chosen proofs; None where nothing was scored."""
    total, count = 0.0, 0
    for row in _rows(folder):
        scores = [proof["score"] for proof in row["proofs"] if not proof["reason"] and proof["score"] is not None]
        if scores:
            total, count = total + max(scores), count + 1
    return total / count if count else None


Labels = Counter[tuple[str | None, str | None]]
"""How often which label stands beside which gold label."""


def _precision(labels: Labels) -> tuple[float | None, int]:
    """Share of right labels among the rows whose gold label is known and that have a label, and their number."""
    known = sum(count for (label, gold), count in labels.items() if label and gold)
    right = sum(count for (label, gold), count in labels.items() if label and label == gold)
    return (right / known if known else None), known


def _judged(folder: Path) -> dict[str, Any]:
    """What the judgements of a round came to."""
    votes, first, shares = Labels(), Labels(), Counter[str]()
    for row in _rows(folder):
        votes[row["label"], row.get("gold")] += 1
        first[row["judgements"][0]["verdict"], row.get("gold")] += 1
        shares[f"{row['vote_share']:.4g}"] += 1
    precise, num_gold = _precision(votes)
    return {
        "num_unlabelled": votes.total(),
        "pseudo_labels": {"precision_one_draw": _precision(first)[0], "precision_vote": precise, "num_gold": num_gold},
        "vote_histogram": {share: shares[share] for share in sorted(shares, key=float)},
    }


def _round(number: int, folders: Mapping[str, Path]) -> dict[str, Any]:
    """One round, as far as it is done."""
    out: dict[str, Any] = _trained(folders.get(f"R{number}"))
    judge = folders.get(f"R{number}-judge")
    judged = _judged(judge) if judge is not None and _filter("", judge) else {}
    if not out and not judged:
        return {}
    out = {"round": number, "name": f"R{number}", **out, **judged}
    if not judged:
        return out
    names = [name for name in ("votes", "proofs", "own", "rules", "balance") if f"R{number}-{name}" in folders]
    filters = [_filter(name, folders[f"R{number}-{name}"]) for name in names]
    out["filters"] = [found for found in filters if found]
    if filters[-1]:
        kept = Labels((row["label"], row.get("gold")) for row in _rows(folders[f"R{number}-{names[-1]}"]))
        out["pseudo_label_precision"] = out["pseudo_labels"]["precision_kept"] = _precision(kept)[0]
        out["kept_share"] = kept.total() / judged["num_unlabelled"] if judged["num_unlabelled"] else None
        side_a = sum(count for (label, _), count in kept.items() if label == "A")
        out["share_of_a"] = side_a / kept.total() if kept else None
    return out


def _rationales(folders: Mapping[str, Path], last: int, count: int = 3) -> list[dict[str, Any]]:
    """The first rationales of the newest round that has any."""
    for number in range(last, 0, -1):
        rows = list(itertools.islice(_rows(folders.get(f"R{number}-rules")), count))
        if rows:
            names = ("id", "prompt", "responses", "label", "gold", "rationale")
            return [{"round": number, **{name: row.get(name) for name in names}} for row in rows]
    return []
