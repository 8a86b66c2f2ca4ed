"""Evaluate weights and write the results into a run folder; the same function during training and afterwards."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core import config as configs
from gramjax.core import folder as folders
from gramjax.core import plugins, row_log
from gramjax.core.writer import json_safe
from gramjax.generation.sampler import Sampler
from gramjax.models.model import Model
from gramjax.training.ends import end_ids as default_ends

BEGUN = ".begun.json"
"""Ending of the file that says what the rows of an unfinished evaluation are of."""

Evaluator = Callable[[Any, Sequence[Mapping[str, Any]], Path, Mapping[str, Any]], dict[str, dict[str, Any]]]
"""`evaluator(params, rows, folder, facts) -> {eval: results}`."""


def row_types(evals: Mapping[str, Any]) -> tuple[str, ...]:
    """The row types that the evals of a config can read, the one to prefer first."""
    return tuple(dict.fromkeys(kind for name in evals for kind in plugins.load("evals", name).ROW_TYPES))


def sections(evals: Mapping[str, Any]) -> dict[str, tuple[ModuleType, Any]]:
    """Each eval's plug-in and settings. Raises UserError for settings that a plug-in refuses; needs no model."""
    modules = {name: plugins.load("evals", name) for name in evals}
    return {name: (m, configs.section(evals[name], m.Config, f"evals.{name}")) for name, m in modules.items()}


def compares(evals: Mapping[str, Any]) -> bool:
    """Whether an eval measures implicit rewards, which a reference may be subtracted from."""
    return any(values.get("method") == "implicit" for values in evals.values())


def goes_on(evals: Mapping[str, Any]) -> bool:
    """Whether all evals of a config go on where they were stopped."""
    return all(getattr(plugins.load("evals", name), "GOES_ON", False) for name in evals)


def make_evaluator(
    model: Model, renderer: Any, evals: Mapping[str, Any], end_ids: tuple[int, ...] = (), reference: Any = None
) -> Evaluator:
    """A function that runs the eval plug-ins of `config.evals` on parameters at rest; it compiles once for many calls.

    It writes `folder/NAME.json` and one line per example to `folder/NAME.rows.jsonl`. `facts` (model, data, step) are
    added to each file. Every process takes part, process 0 writes. A plug-in with `SAMPLES` is given a sampler instead
    of weights and a compiled scorer, `evaluate(sampler, rows, config, write_row)`: its answers end with `end_ids`
    (empty: the tokenizer's end token), its settings are the `generation` of the plug-in's config. One with `REFERENCE`
    is given the packed weights of `reference` too, which implicit rewards are measured against. One with `GOES_ON` and
    `SAMPLES` is given the rows that the same evaluation (settings, facts, weights) wrote before it was stopped, too.
    """
    pack = jax.jit(model.pack)
    parts = {}
    for name, (module, config) in sections(evals).items():
        samples = getattr(module, "SAMPLES", False)
        parts[name] = (module, config, None if samples else module.make_scorer(model, renderer, config, model.mesh))
    ends = end_ids or default_ends(renderer.tokenizer)

    def evaluate(
        params: Any, rows: Sequence[Mapping[str, Any]], folder: Path, facts: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        weights = pack(params) if any(scorer is not None for _, _, scorer in parts.values()) else None
        out = {}
        for name, (module, config, scorer) in parts.items():
            judged: list[dict[str, Any]] = []
            if scorer is None:
                packed = model.pack_for_decoding(params, config.generation.gather_weights)
                sampler = Sampler(model, packed, renderer, ends, config.generation)
                resumes = getattr(module, "GOES_ON", False) and jax.process_count() == 1
                what = identity(config, facts, rows, params) if resumes else None
                done = stopped_at(folder, name, what)
                judged += done
                with written_early(folder, name, judged, what) as write_row:
                    found = dict(module.evaluate(sampler, rows, config, write_row, *([done] if resumes else [])))
            else:
                extra = {"reference": reference} if getattr(module, "REFERENCE", False) else {}
                found = module.evaluate(
                    model, weights, renderer, rows, config, judged.append, model.mesh, scorer, **extra
                )
            out[name] = {**dict(found), **facts}
            if jax.process_index() == 0:
                write_results(folder, name, judged, out[name])
        return out

    return evaluate


def identity(config: Any, facts: Mapping[str, Any], rows: Sequence[Any], params: Any) -> dict[str, Any]:
    """What must be the same for answers of another evaluation to be answers of this one, JSON-able."""

    def sums(tree: Any) -> list[Any]:
        return [(jnp.sum(leaf, dtype=jnp.float32), jnp.sum(jnp.abs(leaf), dtype=jnp.float32)) for leaf in tree]

    numbers = np.asarray(jax.device_get(jax.jit(sums)(jax.tree.leaves(params))), np.float64)
    asked = hashlib.sha256(json.dumps([dict(row) for row in rows], default=str).encode()).hexdigest()
    weights = hashlib.sha256(numbers.tobytes()).hexdigest()
    found = {"settings": dataclasses.asdict(config), "facts": dict(facts), "rows": asked, "weights": weights}
    return json.loads(json.dumps(json_safe(found)))


def stopped_at(folder: Path, name: str, what: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows that an evaluation of this identity wrote before it was stopped; none where there was none."""
    begun = folder / f"{name}{BEGUN}"
    if what is None or not begun.exists() or json.loads(begun.read_text("utf-8")) != what:
        return []
    return list(row_log.whole_lines(folder / f"{name}.rows.jsonl"))


@contextlib.contextmanager
def written_early(
    folder: Path, name: str, judged: list[dict[str, Any]], what: Mapping[str, Any] | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that keeps a row in `judged` and writes it to `folder/NAME.rows.jsonl` at once (process 0).

    Answers take time, and those that are there are worth seeing. The first takes away the results of an earlier run;
    rows that are in `judged` already stay. `what` is kept beside them until the results are written (`stopped_at`).
    """
    with contextlib.ExitStack() as stack:
        files: list[IO[str]] = []
        mode = "a" if judged else "w"

        def keep(row: dict[str, Any]) -> None:
            judged.append(row)
            if jax.process_index() != 0:
                return
            if not files:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.json").unlink(missing_ok=True)
                files.append(stack.enter_context((folder / f"{name}.rows.jsonl").open(mode, encoding="utf-8")))
                if what is not None:
                    folders.write_json(folder / f"{name}{BEGUN}", what)
            files[0].write(json.dumps(row, ensure_ascii=False) + "\n")
            files[0].flush()

        yield keep


def write_results(folder: Path, name: str, examples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    """Write `folder/NAME.json` and, one line per example, `folder/NAME.rows.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    (folder / f"{name}.rows.jsonl").write_text("".join(lines), "utf-8")
    text = json.dumps(json_safe(results), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{name}{BEGUN}").unlink(missing_ok=True)


def numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The plain numbers of the results, as metrics `eval/NAME/KEY`."""
    return {
        f"eval/{name}/{key}": float(value)
        for name, found in results.items()
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
