"""Serve a reward model over HTTP, with the routes that trainers already speak."""

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjax.core import config as configs
from gramjax.core import flags, runtime
from gramjax.core.config import ServeSection
from gramjax.core.errors import UserError

if TYPE_CHECKING:  # JAX is imported by the functions that need it: the help answers at once
    from gramjax.scoring.reading import Layout
    from gramjax.scoring.references import References
    from gramjax.serving.service import Service
    from gramjax.serving.written import WrittenService

NEEDS = ("fastapi", "uvicorn")
SHORTEST = 32
"""The smallest of the lengths that texts are padded to."""

MOST_ROWS_CPU = 8
"""Rows of a batch on a CPU: more do not fit into its caches."""


def main(argv: list[str]) -> int:
    """`gramjax serve --config=serve --config.model.path=RUN_OR_HF_DIR [--config.serve.port=8000]`."""
    arguments = flags.parse(argv, "serve", workdir_needed=False)
    config = arguments.config
    if config.job != "serve":
        raise UserError(f"config {arguments.config_name!r} is for gramjax {config.job}, not for serve")
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model that scores")
    if config.model.random_weights:
        raise UserError("config.model.random_weights: weights that were never trained have no scores to give")
    if arguments.workdir:
        raise UserError("--workdir: serve writes nothing")
    if arguments.distributed:
        raise UserError("--distributed: serve runs in one process (on all devices of its host)")
    if lacking := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {lacking[0]}: pip install 'gramjax[serve]'")
    runtime.one_process("serve")
    section = configs.section(config.serve, ServeSection, "serve")
    from gramjax.serving import application, listening

    token = listening.read_token(section.token_file)
    listening.check_reach(section.host, token, section.open)
    bound = None if arguments.dry_run else listening.bind(section.host, section.port)
    runtime.start(expected=arguments.devices, alone="serve")
    began = time.monotonic()
    found = open_service(config, section, arguments.overrides)
    if bound is None:
        print(describe(found))
        found.batcher.close()
        return 0
    programs = found.warm_up()
    print(f"gramjax: {describe(found)}, {programs} programs, ready after {time.monotonic() - began:.1f} s",
          file=sys.stderr, flush=True)  # fmt: skip
    app = application.make(found, token, section.max_bytes)
    where = listening.url(bound)
    listening.run(app, bound, section.stop_seconds, lambda: print(f"serving {found.name} on {where}", flush=True))
    print("gramjax: stopped", file=sys.stderr)
    return 0


def open_service(config: Any, section: ServeSection, overrides: dict[str, Any]) -> "Service | WrittenService":
    """The model behind a queue. Raises UserError for settings that do not fit it."""
    from gramjax.training import inheritance, rationales

    inheritance.inherit(config, overrides)
    known = open_references(section)
    trained = rationales.instruction_of(config.model.path)
    if section.method == "rationale" or (section.method == "auto" and trained is not None):
        return open_written(config, section, known, section.instruction or trained or "")
    idle = next((name for name in overrides if name.partition(".")[0] in ("sampling", "generation")), "")
    if section.instruction or section.votes != ServeSection.votes or idle:
        name = idle or f"serve.{'instruction' if section.instruction else 'votes'}"
        raise UserError(f"config.{name} is for judges that write rationales (config.serve.method=rationale)")
    return open_read(config, section, known)


def open_references(section: ServeSection) -> "References | None":
    """The answers that a judge compares with. Raises UserError for what is no file."""
    from gramjax.scoring import references

    known = references.open_references(section.reference, "serve.reference") if section.reference else None
    if known is not None and known.column:
        raise UserError(f"config.serve.reference: no file {section.reference!r}")
    return known


def name_of(config: Any, section: ServeSection) -> str:
    """What the model is called in answers."""
    return section.name or Path(str(config.model.path)).resolve().name


def open_written(
    config: Any, section: ServeSection, known: "References | None", instruction: str
) -> "WrittenService":
    """A judge that writes rationales, behind a queue."""
    from gramjax.generation import judging
    from gramjax.serving.written import Drawer, WrittenService
    from gramjax.training import sampling

    if section.overlong not in ("drop", "error", "shorten_responses"):
        raise UserError(f"config.serve.overlong={section.overlong!r}: a judge with rationales can 'drop' or "
                        "'shorten_responses'")  # fmt: skip
    if section.special_tokens:
        raise UserError("config.serve.special_tokens: a judge needs the prompt apart from the answer")
    drawn = configs.section(config.sampling, configs.SamplingSection, "sampling")
    if drawn.num_beams > 1 or drawn.n < 1:
        raise UserError("config.sampling: judgements are drawn (num_beams=1), at least one of each pair")
    overlong = "shorten_responses" if section.overlong == "shorten_responses" else "drop"
    settings = judging.Judging(drawn, "alternate" if drawn.n > 1 else "random", instruction, overlong)
    sampler = sampling.open_sampler(config)
    judging.check_score(section.votes, sampler, "serve.votes")
    return WrittenService(
        name_of(config, section), str(config.model.path), known, section.max_items,
        sampler=sampler, batcher=Drawer(sampler, section.queue, config.seed), judging=settings, votes=section.votes,
    )  # fmt: skip


def open_read(config: Any, section: ServeSection, known: "References | None") -> "Service":
    """A model that is read, behind a queue."""
    from gramjax.scoring.reward_model import settings_of
    from gramjax.serving.batching import Batcher
    from gramjax.serving.service import Service
    from gramjax.training import scoring

    if section.queue < 2 * section.max_items:
        raise UserError(f"config.serve.queue={section.queue} has no room for two sequences of each of "
                        f"config.serve.max_items={section.max_items} texts of a request")  # fmt: skip
    settings = settings_of(section)
    model = scoring.open_reward_model(config, settings, layout_of(section, config.data.max_length))
    if known is not None and model.kind != "judge":
        raise UserError("config.serve.reference is given, but the model scores an answer by itself: leave it out")
    if section.special_tokens and model.kind != "score":
        raise UserError(f"config.serve.special_tokens: a reward by {model.kind} needs the prompt apart from the answer")
    batcher = Batcher(model.read, section.batch_size, section.max_wait_ms / 1000, section.queue)
    return Service(name_of(config, section), str(config.model.path), known, section.max_items,
                   model=model, batcher=batcher, special_tokens=section.special_tokens)  # fmt: skip


def layout_of(section: ServeSection, max_length: int) -> "Layout":
    """The shapes of `config.serve`: every length with every number of rows."""
    import jax

    from gramjax.scoring.reading import MOST, Layout

    # A processor computes a text no faster among others, so padding is what counts there: more lengths, fewer rows.
    on_cpu = jax.default_backend() == "cpu"
    lengths, sizes = section.buckets, section.sizes
    if not lengths:
        powers = [SHORTEST << power for power in range(31)]
        between = [power + power // 2 for power in powers] if on_cpu else []
        lengths = (*(length for length in sorted([*powers, *between]) if length < max_length), max_length)
    if not sizes:
        step, largest = (2, min(section.batch_size, MOST_ROWS_CPU)) if on_cpu else (4, section.batch_size)
        sizes = (*(step**power for power in range(31) if step**power < largest), largest)
    if min(*lengths, *sizes) < 1 or max(lengths) < max_length:
        raise UserError(f"config.serve: buckets {lengths} and sizes {sizes} must be positive, and the longest bucket "
                        f"at least config.data.max_length={max_length}")  # fmt: skip
    return Layout(section.batch_size, tuple(sorted(set(lengths))), section.share, tuple(sorted(set(sizes))),
                  MOST if section.share else 1)  # fmt: skip


def describe(found: "Service | WrittenService") -> str:
    """The model in a few words."""
    from gramjax.serving.written import WrittenService

    if isinstance(found, WrittenService):
        return f"{found.name} ({found.kind}), prompts of up to {found.max_length:,} tokens"
    layout = found.model.layout
    return (f"{found.name} ({found.kind}), texts of up to {found.max_length:,} tokens, lengths {layout.buckets}, "
            f"rows {layout.sizes}")  # fmt: skip
