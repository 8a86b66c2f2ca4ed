"""Train a model: rows to tokens, tokens to steps, steps to checkpoints, and a report at the end."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gramjax.checkpoint import best as bests
from gramjax.checkpoint import state as checkpoints
from gramjax.core import config as configs
from gramjax.core import flags, folder, goodput, processes, progress, runtime, signals, spec, tree, tries, watchdog
from gramjax.core.errors import UserError
from gramjax.core.phases import phases
from gramjax.core.safety import SafetySection
from gramjax.core.sharding import share_of_rows
from gramjax.core.writer import Writer, read_metrics, rewind
from gramjax.models import lora
from gramjax.training import evaluation, loop, out_of_memory, reference, replicas, setup
from gramjax.training.ends import end_ids_of


def main(argv: list[str]) -> int:
    """`gramjax train --config=NAME_OR_PATH --workdir=DIR [--config.a.b=c] [--dry_run]`."""
    arguments = flags.parse(argv, "train")
    if arguments.config.log.wandb:
        runtime.need("wandb", "wandb", "config.log.wandb")
    runtime.return_large_blocks()
    with signals.Watch(at_once=True) as watch:
        runtime.start(distributed=arguments.distributed, expected=arguments.devices)
        if not arguments.dry_run:
            watch.begin(jax.process_count() > 1)
        stop = processes.stopping(lambda: watch.asked)
        for name, config, workdir in phases(arguments.config, Path(arguments.workdir), arguments.dry_run):
            if arguments.dry_run:
                describe(name, setup.build_run(config))
            else:
                train(config, workdir, arguments, name, stop)
    return 0


def describe(name: str, run: setup.Run) -> None:
    """What a dry run prints: sizes, data and mesh; nothing is computed or written."""
    print(f"{name + ': ' if name else ''}{sizes(run)}, mesh {dict(run.network.mesh.shape)}")
    print(f"rows {run.data_counts['rows']:,}, examples {run.data_counts['examples']:,}, steps {run.total_steps:,}")
    for reason, (count, first) in run.data_counts["dropped"].items():
        print(f"  dropped {count:,}: {reason} (first: {first})")
    for note, (count, first) in run.data_counts["notes"].items():
        print(f"  {note}: {count:,}{f' (first: {first})' if first else ''}")


def sizes(run: setup.Run) -> str:
    """How many parameters there are, and how many of them train."""
    flat = tree.flatten(run.network.model.specs(), is_leaf=spec.is_spec)
    trained = sum(leaf.size for path, leaf in flat.items() if run.labels[path] == tree.TRAIN)
    return f"{sum(leaf.size for leaf in flat.values()):,} parameters ({trained:,} trained)"


def train(config: Any, workdir: Path, arguments: flags.Arguments, name: str, stop: Callable[[], bool]) -> None:
    """One training: build, restore or start, loop, evaluate, report. `stop` says whether the job was asked to stop."""
    section = configs.section(config.train, configs.TrainSection, "train")
    safety = configs.section(config.safety, SafetySection, "safety")
    started = time.perf_counter()
    with contextlib.ExitStack() as held:
        dog = held.enter_context(watchdog.Watchdog(safety.watchdog_seconds, safety.watchdog_factor))
        held.enter_context(progress.heard_by(progress.Listener(dog.begins, signals.stopper(stop))))
        clock = goodput.Clock()
        held.enter_context(progress.heard_by(progress.Listener(clock.begins)))
        processes.agree_on_code()
        processes.agree("config", folder.as_dict(config), folder.differences)
        processes.by_the_first(lambda: held.enter_context(checkpoints.RunLock(workdir)))
        processes.by_the_first(
            lambda: folder.prepare(
                workdir, config, arguments.overrides, config.resume, config.overwrite, reset_data=safety.reset_data
            )
        )
        processes.by_the_first(lambda: held.enter_context(tries.Try(workdir, safety.max_crashes)))
        run = processes.together(lambda: setup.build_run(config))
        best = bests.Best(bests.rule_of(config.train))
        held.enter_context(out_of_memory.explained(config, run))
        processes.agree("data", run.source.fingerprint())
        processes.by_the_first(lambda: describe_folder(run, workdir))
        progress.stop_point("the start of the training")
        saved = checkpoints.Checkpoints(workdir, section.keep, beside=best.among)
        compared = reference.load(config, run)
        about = facts(run, compared)
        progress.begins("reading the weights", slow=True)
        state, start_step, data, fresh = restore_or_start(run, saved, config, about)
        if start_step >= run.total_steps and (workdir / "DONE").exists():
            print(f"{workdir} is done ({start_step} steps); --config.overwrite=True trains it again")
            return
        rows = run.valid_rows
        plan = loop.Plan(
            run.total_steps,
            section.log_every,
            section.eval_every if rows else 0,
            section.save_every,
            safety.check_replicas_every,
            safety.on_bad_step == "stop",
            safety.max_bad_steps,
            share_of_rows(run.network.mesh, jax.process_index())[1],
        )
        clock.rolls = run.rolls
        if jax.process_index() == 0 and (workdir / "metrics.jsonl").exists():
            entries = read_metrics(workdir / "metrics.jsonl")
            clock.goes_on(entries, start_step)
            best.goes_on(entries, start_step)
        evaluated = bool(data.get("evaluated", True))
        if rows and not evaluated and jax.process_index() == 0 and evaluates(plan, start_step):
            rewind(workdir / "metrics.jsonl", start_step, evaluated=False)
        outputs = configs.section(config.log, configs.LogSection, "log")
        with Writer(workdir, outputs, run.total_steps, start_step, beside=clock.numbers) as writer, saved:
            announce(writer, name, run, start_step)
            log: loop.Writer = writer
            if run.rolls:
                from gramjax.training import rollout_log

                log = rollout_log.attach(run, workdir, writer, compared)

            network = run.network
            ends, evals = end_ids_of(network), config.evals if rows else {}
            beside = reference.packed(compared) if evaluation.compares(evals) else None
            evaluator = evaluation.make_evaluator(network.model, network.renderer, evals, ends, beside)

            def evaluate(step: int, state: Any) -> bool:
                progress.begins("an evaluation", slow=True)
                results = evaluator(state["params"], rows, workdir / "eval", {"step": step})
                worth_keeping = best.note(step, results, saved.coming())
                writer.write(step, evaluation.numbers(results))
                if step == run.total_steps:
                    writer.say(summary(results))
                return bool(processes.shared(worth_keeping))

            def save(step: int, state: Any, data: dict[str, Any]) -> None:
                saved.save(step, state, data, {**about, "fresh": fresh})

            progress.stop_point("the compilation of the training step")
            compiled = compile_step(run, state, writer, started, compared)
            progress.stop_point("the first step")

            def step(state: Any, batch: Any) -> tuple[Any, Any]:
                state, metrics = compiled(state, batch)
                dog.dispatched(metrics["loss"][0])
                clock.dispatched(metrics["loss"][0])
                return state, metrics

            state = loop.run(
                state,
                step,
                run.source,
                run.put,
                log,
                plan,
                start_step,
                data.get("num_tokens", 0),
                evaluate if rows else None,
                save,
                run.source.epoch,
                stop,
                evaluated,
                replicas.check,
            )
            if rows:
                evaluate(run.total_steps, state)
            for found in best.among(saved.coming())[:1]:
                writer.say(f"best checkpoint  {workdir}{bests.SUFFIX}: step {found}, {best.said(found)}")
            progress.begins("the end of the last checkpoint", slow=True)
        finish(workdir, run, outputs.report)


def evaluates(plan: loop.Plan, step: int) -> bool:
    """Whether a training that goes on at a step begins with an evaluation."""
    return step >= plan.total_steps or bool(plan.eval_every and step and step % plan.eval_every == 0)


def describe_folder(run: setup.Run, workdir: Path) -> None:
    """Write the tokenizer and the settings that follow from the rows."""
    run.network.renderer.tokenizer.save(workdir / "tokenizer")
    folder.write_json(workdir / "objective.json", dataclasses.asdict(run.objective_config))


def restore_or_start(
    run: setup.Run, saved: checkpoints.Checkpoints, config: Any, about: dict[str, Any]
) -> tuple[Any, int, dict[str, Any], list[str]]:
    """The newest good checkpoint of this run, or a first state: (state, step, what was saved beside it, untrained
    heads)."""
    if config.resume and saved.steps():
        reset = config.safety.reset_data
        restored = saved.restore(None, run.abstract_state, about, reset_data=reset)
        position = restored.data_state["source"]
        run.source.restore(at_the_same_number(position, run) if reset else position)
        return restored.state, restored.step, restored.data_state, restored.meta.get("fresh", [])
    state, loaded = setup.first_state(run)
    for note in loaded.notes:
        print(f"gramjax: {note}", file=sys.stderr)
    return state, 0, {}, [path for path in loaded.fresh if run.labels.get(path) == tree.FREEZE]


def at_the_same_number(position: dict[str, Any], run: setup.Run) -> dict[str, Any]:
    """The position in data that changed: the same number of the next batch; samples of the old prompts are dropped."""
    drawn: dict[str, Any] = {"waiting": [], "surplus": [], "pending": None} if run.rolls else {}
    return {**position, "fingerprint": run.source.fingerprint(), **drawn}


def facts(run: setup.Run, compared: reference.Reference | None) -> dict[str, Any]:
    """What a checkpoint says about the run it belongs to."""
    arch = run.network.model.config
    model = folder.as_dict(configs.as_config(arch))
    if lora.of(arch).rank:
        model["lora"] = folder.as_dict(dataclasses.asdict(arch.lora))
    return {
        "model": model,
        "mesh": dict(run.network.mesh.shape),
        "data": run.source.fingerprint(),
        "tokenizer": run.network.renderer.tokenizer.fingerprint,
    } | ({} if compared is None else {"reference": {"fingerprint": compared.fingerprint}})


def announce(writer: Writer, name: str, run: setup.Run, start_step: int) -> None:
    """The lines that open a run: sizes, trained share, mesh, data, and what was dropped."""
    writer.say(f"{name + ': ' if name else ''}{sizes(run)}, mesh {dict(run.network.mesh.shape)}")
    writer.say(
        f"{run.data_counts['examples']:,} examples of {run.data_counts['rows']:,} rows, {run.total_steps:,} steps"
    )
    for reason, (count, first) in run.data_counts["dropped"].items():
        writer.say(f"  dropped {count:,}: {reason} (first: {first})")
    for note, (count, first) in run.data_counts["notes"].items():
        writer.say(f"  {note}: {count:,}{f' (first: {first})' if first else ''}")
    for note in run.network.renderer.tokenizer.notes:
        writer.say(f"  tokenizer: {note}")
    if start_step:
        writer.say(f"resuming at step {start_step}")


def compile_step(
    run: setup.Run, state: Any, writer: Writer, started: float, compared: reference.Reference | None
) -> Any:
    """The step `(state, batch) -> (state, metrics)`, compiled for the shapes of the data; says what memory it takes."""
    if run.rolls:  # the first rollout comes first, and batches come in several shapes, each compiled when it is met
        return run.step
    second = () if compared is None else (compared.params,)
    compiled = run.step.lower(state, run.put(run.source.batch(0)), *second).compile()
    memory = compiled.memory_analysis()
    runtime.release_memory()  # after the analysis, which builds the program's text once more
    seconds = time.perf_counter() - started
    if memory is not None:
        state_gib, temporary_gib = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
        writer.say(
            f"ready after {seconds:.1f} s; per device {state_gib:.2f} GiB of state and batch, "
            f"{temporary_gib:.2f} GiB of temporaries"
        )
    return lambda state, batch: compiled(state, batch, *second)


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The line a person looks for at the end: `accuracy 0.93 (held out 200)   swap consistency 0.97   ece 0.04`."""
    found = results.get("preference") or results.get("preference_order") or results.get("rationale", {})
    parts = [f"accuracy {found['accuracy']:.3f} (held out {found['num_pairs']:,})"] if "accuracy" in found else []
    for name in ("agreement", "swap_consistency", "ece"):
        if found.get(name) is not None:
            parts.append(f"{name.replace('_', ' ')} {found[name]:.3f}")
    return "   ".join(parts) or "evaluated: " + ", ".join(results)


def finish(workdir: Path, run: setup.Run, wanted: bool) -> None:
    """Mark the run as done and, where it is wanted, write its report."""
    if jax.process_index() != 0:
        return
    folder.write_json(workdir / "data.json", run.data_counts)
    (workdir / "DONE").write_text("")
    if wanted:
        from gramjax.plots import report

        try:
            print(f"report  {report.write_report(workdir)}")
        except UserError as error:
            print(f"gramjax: no report: {error}", file=sys.stderr)
    print(f"run folder  {workdir}")
