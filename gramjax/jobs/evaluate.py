"""Evaluate a trained run, a Hugging Face folder or a llama2.c file on a data file."""

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax

from gramjax.core import config as configs
from gramjax.core import ensembles, flags, folder, judgements, leaderboards, processes, runtime, signals, spec
from gramjax.core.errors import GramjaxError, UserError
from gramjax.data import readers
from gramjax.training import evaluation, exports, inheritance, rationales, scoring, setup
from gramjax.training.ends import end_ids_of

SHOWN = ("num_pairs", "accuracy", "accuracy_one_draw", "ties", "num_tied", "num_unreadable", "agreement",
         "swap_consistency", "order_correlation", "position_bias", "ece", "brier", "rm_bench_overall", "rm_bench_hard",
         "judgebench_official", "judgebench_averaged", "rewardbench_official", "rewardbench_reasoning_unweighted",
         "hhh_mean", "rewardbench2_overall", "rewardbench2_ties",
         "num_problems", "k", "avg@k", "avg@k_sampling_error", "avg@k_question_error", "maj@k", "greedy_accuracy",
         "greedy_flip_rate", "avg@k_compatible", "greedy_compatible", "mean_of_languages_avg@k",
         "mean_of_languages_greedy_accuracy", "mean_of_languages_avg@k_compatible",
         "mean_of_languages_greedy_compatible",
         "uncertain_share", "clipped_share", "no_answer_share", "n_errors", "num_skipped",
         "perplexity", "nll",
         "num_lists", "selector", "n", "proxy", "oracle", "oracle_share", "num_sequences")  # fmt: skip
"""The numbers that a person looks for first."""

PASS = re.compile(r"pass@\d+")

READ = ("preference", "rewardbench2", "best_of_n")
"""Evals that read a verdict or a reward where `auto` takes it to be."""


def main(argv: list[str]) -> int:
    """`gramjax evaluate --config=evaluate --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR`."""
    arguments = flags.parse(argv, "evaluate")
    runtime.start(distributed=arguments.distributed, expected=arguments.devices)
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
    processes.agree_on_code()
    processes.agree("config", folder.as_dict(config), folder.differences)
    processes.by_the_first(lambda: describe(config, arguments.overrides, workdir))
    several = jax.process_count() > 1
    goes_on = not several and evaluation.goes_on(config.evals)
    served = signals.served(signals.GOES_ON if goes_on else signals.BEGINS_AGAIN, several)
    if config.get("ensemble", {}).get("members"):
        with served:
            judge_together(config, arguments.overrides, workdir)
        return 0
    with served:
        results_of = judge(config, arguments.overrides, workdir / "eval")
    for name, results in results_of.items():
        show(name, results, workdir)
        export(config, name, workdir)
    return 0


def describe(config: Any, overrides: dict[str, Any], workdir: Path) -> None:
    """Write what is evaluated and where."""
    folder.write_json(workdir / "config.json", folder.as_dict(config))
    folder.write_json(workdir / "overrides.json", folder.as_dict(overrides))
    folder.write_json(workdir / "env.json", runtime.facts())


def open_rows(config: Any, overrides: dict[str, Any]) -> tuple[Any, setup.Network, dict[str, Any]]:
    """The rows to judge, the model that judges them, and the settings taken from the run that trained it."""
    settings = inheritance.inherit(config, overrides)
    evaluation.sections(config.evals)  # what they refuse is said before weights are read
    for name, own in config.evals.items():
        if name in READ:
            rationales.refuse(config.model.path, own.method, f"config.evals.{name}.method")
    network = setup.open_network(config)
    found = readers.read(config.data.path, setup.data_section(config), evaluation.row_types(config.evals))
    return found, network, settings


def judge(config: Any, overrides: dict[str, Any], target: Path) -> dict[str, dict[str, Any]]:
    """Evaluate the model of `config.model.path`; results and rows go into `target`."""
    section = configs.section(config.get("reference", {}), configs.ReferenceSection, "reference")
    if section.path and not evaluation.compares(config.evals):
        raise UserError("config.reference.path is for implicit rewards: set --config.evals.preference.method=implicit")
    found, network, settings = processes.together(lambda: open_rows(config, overrides))
    processes.agree("rows", found.files)
    params = processes.together(lambda: setup.load_for_use(network))
    facts = {
        "model": config.model.path,
        "data": config.data.path,
        "num_rows": found.total,
        "dropped_rows": {reason: {"count": count, "first": first} for reason, (count, first) in found.dropped.items()},
        "inherited": settings,
    }
    ends = end_ids_of(network)
    reference = scoring.load_reference(network, section) if section.path else None
    evaluator = evaluation.make_evaluator(network.model, network.renderer, config.evals, ends, reference)
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
        if jax.process_index() == 0:
            print(f"member {number}  accuracy {facts['accuracy']:.4f}  {path}", flush=True)
        processes.by_the_first(lambda: None)  # it has written the rows
        lines = (target / "preference.rows.jsonl").read_text("utf-8").split("\n")
        judged.append([json.loads(line) for line in lines if line])
    method = config.evals.preference
    records, missing = ensembles.combine(judged, section.combination, section.penalty, method.agg)
    results = dict(
        judgements.summarise(
            records, method.bins, method.bootstrap_samples, method.seed, method.length_edges, method.length_difference
        )
    )
    results |= dict(leaderboards.summarise(records, leaderboards.benchmark_of(records), method.seed))
    results |= {
        "members": list(paths),
        "combination": section.combination,
        "num_not_judged_by_all": missing,
        "data": config.data.path,
    }
    if jax.process_index() == 0:
        evaluation.write_results(workdir / "eval", "preference", records, results)
    show("preference", results, workdir)
    export(config, "preference", workdir)


def export(config: Any, name: str, workdir: Path) -> None:
    """Write the files for the leaderboard of the rows' benchmark, if they belong to one (see `gramjax leaderboard`)."""
    rows = workdir / "eval" / f"{name}.rows.jsonl"
    if jax.process_index() != 0 or not rows.is_file():
        return
    records = [json.loads(line) for line in rows.read_text("utf-8").split("\n") if line]
    try:
        for path in exports.write(workdir / "eval", folder.as_dict(config), records, name):
            print(f"for the leaderboard  {path}")
    except GramjaxError as error:  # the results stand already
        print(f"gramjax: no files for the leaderboard: {error}", file=sys.stderr)


def show(name: str, results: dict[str, Any], workdir: Path) -> None:
    """The numbers a person looks for first, and where the rest is."""
    if jax.process_index() != 0:
        return
    for key in (*SHOWN, *(name for name in results if PASS.fullmatch(name))):
        value = results.get(key)
        if value is not None:
            interval = ""
            if results.get(f"{key}_low") is not None:
                interval = f"  (95% interval {results[f'{key}_low']:.3f} to {results[f'{key}_high']:.3f})"
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{key:<20} {shown}{interval}")
    for language, facts in (results.get("by_language") or {}).items():
        print("  ".join([f"{'  ' + language:<20}", *(f"{key} {facts[key]:.4g}" for key in SHOWN if key in facts)]))
    for benchmark in (*leaderboards.NEEDS, "rewardbench2"):
        if missing := (results.get(benchmark) or {}).get("missing"):
            print(f"no overall score of {benchmark}: no rows of {', '.join(missing)}")
    for judge, facts in (results.get("trivial_judges") or {}).items():
        interval = f"(95% interval {facts['low']:.3f} to {facts['high']:.3f})"
        print(f"{f'  {judge} alone':<20} {facts['accuracy']:.4g}  {interval}")
    print(f"results  {workdir / 'eval' / f'{name}.json'}")
