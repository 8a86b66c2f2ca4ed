"""Pairs with rationales that the package generates: whose symbols follow a hidden permutation more often (check S3).

An alphabet of 16 symbols and a permutation P that is never shown. The prompt names four symbols, `Map: c h a p`; a
response, `Out: d f a k`, has P(x) at each place with a probability of its own, uniform on [0, 1], and a random symbol
else. The response with more right places is better. The rationale says for each place of A, then of B, whether it is
right, then the two counts, then the label: steps that a label alone does not show.

Splits: `train` and `valid` (rationale rows; they also serve as preference rows), `unlabelled` (pairs, ties kept; their
`gold` is there to count with); and the rows of `train` as training examples: `judge` (writes rationale and label),
`label_only` (writes the label), `prover` (is given the label, writes the proof). All splits of a seed share one
permutation.

The tokenizer has one token per symbol and per fixed piece of text: a judge's prompt has 20 tokens, a prover's 22, a
rationale and a proof 22 each with the end token, a label alone 4. The fixed pieces of the prover's prompt are the same
when it is blanked.

Measured once (seed 0; 2 layers of width 64, 4 heads of 16, mlp 256, `init_scale` 0.06, next-token cross-entropy from
scratch, AdamW with betas (0.9, 0.98) at 1e-3, batch 64): share of right greedy verdicts on the 400 rows of `valid`, in
their order and swapped. 2,048 rows and 1,500 steps: 0.995 and 0.990 with rationales, 0.813 and 0.813 with labels only;
256 rows and 700 steps: 0.648 and 0.685 against 0.515 and 0.585. Every reply had a readable verdict.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import judge_prompts, proofs, vocabularies
from gramjax.data import tokenizer as tokenizers
from gramjax.data.formats import END, QUESTION, START
from gramjax.data.rationales import Rationale, read_rationale, render_rationale

SYMBOLS = "abcdefghijklmnop"
PLACES = 4
FLAGS = ("no", "yes")
SPLITS = {"train": 256, "unlabelled": 4000, "valid": 400, "judge": 256, "label_only": 256, "prover": 256}
"""Splits and their default sizes."""

JUDGE_PROMPT, PROVER_PROMPT = "Judge.", "Prove."
"""Short instructions, one token each."""

CUE = "#Preferred:"
MAX_LENGTH = 48
"""Tokens of a judge's or prover's prompt and reply, rounded up; for `config.data.max_length`."""

VERSION = hashlib.sha256(f"1{SYMBOLS}{PLACES}{FLAGS}".encode()).hexdigest()
"""Names the generator in the fingerprint of a run's data."""

MARKERS = (QUESTION, *(marker.format(letter) for letter in "AB" for marker in (START, END)), CUE)
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", *MARKERS)

_A, _B = (tuple(m.format(x) for m in (judge_prompts.START, judge_prompts.END)) for x in "AB")
_BLOCK_A = f"\n\n{_A[0]}\n"
_BLOCK_B = f"\n{_A[1]}\n\n{_B[0]}\n"
_LAST = f"\n{_B[1]}\n\n"
PIECES = (
    f"{JUDGE_PROMPT}\n\n{QUESTION}\n",
    f"{PROVER_PROMPT}\n\n{QUESTION}\n",
    _BLOCK_A,
    _BLOCK_B,
    _LAST,
    f"{_LAST}{judge_prompts.BETTER}\n",
    "\n\n",
    "<think>\nFeedback:\nResponse A:",
    "\nResponse B:",
    "\n\nComparision:\nResponse",
    "\n\nConclusion:\nResponse",
    " Response",
    " is better.\n</think>\n<answer>",
    "</answer>",
    "<answer>",
    proofs.OPENING.partition(" {")[0],
    " is the better one.\n\nFirst, Response A:",
    "\n\nThen, Response B:",
    "\n\nSide by side: Response",
    "\n\n" + proofs.CLOSING.partition(" {")[0],
    " is better.",
    "Map:",
    "Out:",
    JUDGE_PROMPT,
    PROVER_PROMPT,
)
"""Fixed pieces of the texts of this world, one token each."""

WORDS = tuple(f" {word}" for word in (*SYMBOLS, *FLAGS, *map(str, range(PLACES + 1)), "A", "B"))


def tokenizer(pad: str = "", chat_template: str = "") -> tokenizers.Tokenizer:
    """One token per symbol, flag, number and fixed piece of text, bytes for any other text. Nothing is trained."""
    from tokenizers import Regex, pre_tokenizers

    library = vocabularies.words([*PIECES, *WORDS], SPECIALS)
    longest_first = sorted([*PIECES, *WORDS], key=len, reverse=True)
    pieces = Regex("|".join(re.escape(piece) + (r"\b" if piece in WORDS else "") for piece in longest_first))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizers.build(library, SPECIALS[0], SPECIALS[1], SPECIALS[2], pad, chat_template)


def permutation(seed: int = 0) -> dict[str, str]:
    """The hidden permutation of a seed: what each symbol is mapped to."""
    turned = list(SYMBOLS)
    random.Random(f"{seed}/permutation").shuffle(turned)
    return dict(zip(SYMBOLS, turned, strict=True))


def flags(prompt: str, response: str, hidden: dict[str, str]) -> list[bool]:
    """For each place of a response whether it is right."""
    asked, given = (text.partition(": ")[2].split(" ") for text in (prompt, response))
    return [hidden[x] == y for x, y in zip(asked, given, strict=True)]


def rationale_of(flags_a: Sequence[bool], flags_b: Sequence[bool], label: str) -> str:
    """The rendered rationale: flags of A, flags of B, the two counts, the label."""
    first, second = (" ".join(FLAGS[flag] for flag in each) for each in (flags_a, flags_b))
    counts = f"Response A {sum(flags_a)} Response B {sum(flags_b)}"
    return render_rationale(Rationale(first, second, counts, label))


def corrupted(rationale: str, draw: random.Random) -> str:
    """The rationale with flags drawn at random and counts that follow them; its label stays.

    Raises Drop for a text that is no rendered rationale.
    """
    one, two = ([draw.random() < 0.5 for _ in range(PLACES)] for _ in "AB")
    return rationale_of(one, two, read_rationale(rationale).verdict)


def _response(asked: Sequence[str], hidden: dict[str, str], draw: random.Random) -> str:
    quality = draw.random()
    given = [hidden[x] if draw.random() < quality else draw.choice(SYMBOLS) for x in asked]
    return " ".join(["Out:", *given])


def _pair(hidden: dict[str, str], draw: random.Random) -> dict[str, Any]:
    asked = [draw.choice(SYMBOLS) for _ in range(PLACES)]
    responses = [_response(asked, hidden, draw) for _ in "AB"]
    return {"prompt": " ".join(["Map:", *asked]), "responses": responses}


def _shown(row: dict[str, Any], split: str) -> dict[str, Any]:
    if split == "prover":
        return judge_prompts.prover_row(row, PROVER_PROMPT)
    if split in ("judge", "label_only"):
        write = judge_prompts.judge_row if split == "judge" else judge_prompts.label_row
        return write(row, JUDGE_PROMPT)
    return row


def rows(split: str = "train", size: int = 0, seed: int = 0, corrupt: float = 0.0) -> list[dict[str, Any]]:
    """Generated rows of a split; the same split, size, seed and `corrupt` give the same rows.

    `corrupt` is the share of rationales (and of the proofs made of them) whose flags and counts are random. Responses
    that are equal are not generated. Raises UserError for an unknown split or a share outside [0, 1].
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r} (there are: {', '.join(SPLITS)})")
    if not 0 <= corrupt <= 1:
        raise UserError(f"recipe permutation_world: corrupt={corrupt} is no share; it must be from 0 to 1")
    size = size or SPLITS[split]
    source = split if split in ("unlabelled", "valid") else "train"
    hidden, draw = permutation(seed), random.Random(f"{seed}/{source}")
    spoiling = random.Random(f"{seed}/{source}/corrupt")
    out: list[dict[str, Any]] = []
    while len(out) < size:
        row = {"id": f"{source}-{len(out)}", **_pair(hidden, draw)}
        if row["responses"][0] == row["responses"][1]:
            continue
        one, two = (flags(row["prompt"], response, hidden) for response in row["responses"])
        label = "A" if sum(one) > sum(two) else "B"
        if source == "unlabelled":
            out.append(row if sum(one) == sum(two) else {**row, "gold": label})
            continue
        if sum(one) == sum(two):
            continue
        text = rationale_of(one, two, label)
        spoilt = corrupted(text, spoiling)
        row |= {"label": label, "rationale": spoilt if spoiling.random() < corrupt else text}
        out.append(_shown(row, split))
    return out
