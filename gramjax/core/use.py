"""The sections of the jobs that use a reward model: scoring of files, and the server."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ScoreSection:
    """How the rows of a file are scored."""

    method: str = "auto"
    """`judge` (verdict tokens), `score` (scalar head), `implicit` (log-probability of the answer, less that of
    config.reference if there is one), or `auto`: `score` if the model has that head, else `judge`."""
    agg: str = "prob"
    """Average of a judge's two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "shorten_responses"
    """What happens to texts longer than config.data.max_length: `drop`, `truncate_prompt_left`, `shorten_responses` or
    `error`; empty: as config.data.overlong says."""
    reference: str = ""
    """What a judge compares an answer with: a column of the rows, or a file of rows with `prompt` or `id` and the
    answer (`reference`, `response`, `completion` or `text`)."""
    batch_size: int = 32
    """Sequences per batch over all devices. Scores do not depend on it."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: chosen by the data."""
    share: bool = True
    """Compute what texts have in common at the start once; scores change by rounding only."""
    chunk: int = 512
    """Rows that are scored, and then written, together: what a kill loses at most."""


@dataclasses.dataclass(frozen=True)
class ServeSection:
    """The reward server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """0: any free one; the line that says where it listens names it."""
    name: str = ""
    """The model's name in answers; empty: the last part of config.model.path."""
    token_file: str = ""
    """File whose first line every request must bring as `Authorization: Bearer TOKEN`; empty: the environment variable
    GRAMJAX_SERVE_TOKEN, and without that no token is asked for."""
    open: bool = False
    """Listen on an address that others can reach although no token is asked for."""
    method: str = "auto"
    """`judge`, `score`, `implicit` or `auto`, as in config.score.method; `rationale`: the model writes its judgement
    (GRAM-R2; `auto` for a run that was trained so)."""
    votes: str = "probability"
    """What judgements of a rationale say together: share of the `votes`, or mean `probability` of the letter."""
    instruction: str = ""
    """Of `rationale`: the judge's instruction; empty: that of the run, else the package's own wording."""
    agg: str = "prob"
    """Average of a judge's two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "drop"
    """Texts longer than config.data.max_length: `drop` and `error` refuse the request, `truncate_prompt_left` and
    `shorten_responses` cut; empty: as config.data.overlong says."""
    reference: str = ""
    """File of answers that a judge compares with on the routes that score one answer, as in config.score.reference;
    requests may bring their own."""
    special_tokens: bool = False
    """Read special tokens in texts that come without a prompt as such: for clients that send what a chat template wrote
    (OpenRLHF, verl). Otherwise they are text."""
    batch_size: int = 32
    """Sequences that are computed together."""
    max_wait_ms: float = 2.0
    """Longest time that a request waits for others to be computed with."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: powers of two from 32 to config.data.max_length, on a CPU also those
    halfway between."""
    sizes: tuple[int, ...] = ()
    """Rows that a batch may have; empty: 1, 4, 16, ... up to the batch size, on a CPU 1, 2, 4, 8. Every length is
    compiled with every size before the first request."""
    share: bool = True
    """Compute what the two orders of a pair have in common at the start once."""
    queue: int = 1024
    """Sequences that may wait; a request that finds no room is answered 429."""
    max_items: int = 256
    """Most texts in one request."""
    max_bytes: int = 1048576
    """Largest body of a request."""
    stop_seconds: float = 30.0
    """Time for requests under way after SIGTERM."""
