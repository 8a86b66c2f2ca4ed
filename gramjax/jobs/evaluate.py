"""Evaluate a trained run, a Hugging Face folder or a llama2.c file on a data file."""

import copy
import json
from pathlib import Path
from typing import Any

import jax

from gramjax.core import config as configs
from gramjax.core import ensembles, flags, folder, judgements, runtime, spec
from gramjax.core.errors import UserError
from gramjax.data import readers
from gramjax.training import evaluation, inheritance, sampling, setup

SHOWN = ("num_pairs", "accuracy", "accuracy_one_draw", "ties", "num_tied", "num_unreadable", "agreement",
         "swap_consistency", "order_correlation", "position_bias", "ece", "brier", "rm_bench_overall", "rm_bench_hard",
         "judgebench_official", "judgebench_averaged")  # fmt: skip
"""The numbers that a person looks for first."""

INSTRUCTION = "evals.rationale.judging.instruction"
"""The judge's instruction, which a training with rationales has in `objective.instruction`."""


def main(argv: list[str]) -> int:
    """`gramjax evaluate --config=evaluate --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR`."""
    arguments = flags.parse(argv, "evaluate")
    runtime.start(distributed=arguments.distributed)
    config = arguments.config
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model to evaluate")
    if config.model.random_weights:
        raise UserError("config.model.random_weights: there is nothing to evaluate in weights that were never trained")
    path = config.data.path
    if not path:
        raise UserError("give --config.data.path=FILE, the rows to evaluate on")
    if arguments.dry_run:
        found, network = open_rows(config, arguments.overrides)[:2]
        print(f"{len(found.rows):,} rows of {found.total:,}, {spec.count(network.model.specs()):,} parameters")
        return 0
    workdir = Path(arguments.workdir)
    folder.write_json(workdir / "config.json", folder.as_dict(config))
    folder.write_json(workdir / "overrides.json", folder.as_dict(arguments.overrides))
    folder.write_json(workdir / "env.json", runtime.facts())
    if config.get("ensemble", {}).get("members"):
        judge_together(config, arguments.overrides, workdir)
        return 0
    for name, results in judge(config, arguments.overrides, workdir / "eval").items():
        show(name, results, workdir)
    return 0


def open_rows(config: Any, overrides: dict[str, Any]) -> tuple[Any, setup.Network, dict[str, Any]]:
    """The rows to judge, the model that judges them, and the settings taken from the run that trained it."""
    settings = inheritance.inherit(config, overrides)
    network = setup.open_network(config)
    found = readers.read(config.data.path, setup.data_section(config), evaluation.row_types(config.evals))
    return found, network, settings


def judge(config: Any, overrides: dict[str, Any], target: Path) -> dict[str, dict[str, Any]]:
    """Evaluate the model of `config.model.path`; results and rows go into `target`."""
    found, network, settings = open_rows(config, overrides)
    params = setup.load_for_use(network)
    facts = {
        "model": config.model.path,
        "data": config.data.path,
        "num_rows": found.total,
        "dropped_rows": {reason: {"count": count, "first": first} for reason, (count, first) in found.dropped.items()},
        "inherited": settings,
    }
    ends = sampling.end_ids_of(network)
    evaluator = evaluation.make_evaluator(network.model, network.renderer, config.evals, ends)
    return evaluator(params, found.rows, target, facts)


def judge_together(config: Any, overrides: dict[str, Any], workdir: Path) -> None:
    """Let each member judge (into `members/NN`), then combine what they said (into `eval`)."""
    section = configs.section(config.ensemble, configs.EnsembleSection, "ensemble")
    if set(config.evals) != {"preference"}:
        raise UserError("config.ensemble.members: an ensemble judges preference rows; leave other evals out")
    paths, judged = (config.model.path, *section.members), []
    for number, path in enumerate(paths):
        own = copy.deepcopy(config)
        with own.unlocked():
            own.model.path, own.model.adapter = path, "" if number else config.model.adapter
        target = workdir / "members" / f"{number:02d}"
        facts = judge(own, overrides, target)["preference"]
        print(f"member {number}  accuracy {facts['accuracy']:.4f}  {path}", flush=True)
        lines = (target / "preference.rows.jsonl").read_text("utf-8").split("\n")
        judged.append([json.loads(line) for line in lines if line])
    method = config.evals.preference
    records, missing = ensembles.combine(judged, section.combination, section.penalty, method.agg)
    results = dict(
        judgements.summarise(
            records, method.bins, method.bootstrap_samples, method.seed, method.length_edges, method.length_difference
        )
    ) | {
        "members": list(paths),
        "combination": section.combination,
        "num_not_judged_by_all": missing,
        "data": config.data.path,
    }
    if jax.process_index() == 0:
        evaluation.write_results(workdir / "eval", "preference", records, results)
    show("preference", results, workdir)


def show(name: str, results: dict[str, Any], workdir: Path) -> None:
    """The numbers a person looks for first, and where the rest is."""
    if jax.process_index() != 0:
        return
    for key in SHOWN:
        value = results.get(key)
        if value is not None:
            interval = ""
            if key == "accuracy" and results.get("accuracy_low") is not None:
                interval = f"  (95% interval {results['accuracy_low']:.3f} to {results['accuracy_high']:.3f})"
            print(f"{key:<21}{value:.4g}{interval}" if isinstance(value, float) else f"{key:<21}{value}{interval}")
    print(f"results  {workdir / 'eval' / f'{name}.json'}")
