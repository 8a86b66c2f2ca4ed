"""Preference pairs that the package generates, each after a criterion of its own (check S4 of LRHP, as text).

An answer lists six attributes from 0 to 9, `Has: speed7 price2 size5 age9 heat0 tone4`. Whoever labels a pair looks at
one attribute, one of the first four, and prefers the larger; ties are not generated. The prompt hints at the attribute,
`Wanted: speed`, rightly with probability 0.9 + 0.1/4. The column `subset` names the attribute that decided, `margin`
is the difference in it.

Splits: `train` and `valid` (all criteria), and `speed`, `price`, `size`, `age`: pairs of one criterion, for target sets
and for tests. All of them differ in their seeds; the tokenizer has one token per attribute with its value.

Settings that learn it from scratch: 2 layers of width 64, 4 heads of 16, mlp 128, `init_scale` 0.08, AdamW with betas
(0.9, 0.98) at 2e-3, batch 64; docs/lrhp.md has what they reach.
"""

import hashlib
import random
import re
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import tokenizer as tokenizers
from gramjax.data import vocabularies
from gramjax.data.formats import END, QUESTION, START

CRITERIA = ("speed", "price", "size", "age")
ATTRIBUTES = (*CRITERIA, "heat", "tone")
VALUES = 10
RIGHT_HINTS = 0.9
"""Share of the prompts that surely hint at the right criterion; the others hint at any."""

SPLITS = {"train": 4000, "valid": 400} | dict.fromkeys(CRITERIA, 64)
"""Splits and their default sizes."""

MAX_LENGTH = 32
"""Tokens of a pair with the learned token, rounded up; for `config.data.max_length`."""

VERSION = hashlib.sha256(f"1{ATTRIBUTES}{CRITERIA}{VALUES}{RIGHT_HINTS}".encode()).hexdigest()
"""Names the generator in the fingerprint of a run's data."""

MARKERS = (QUESTION, *(marker.format(letter) for letter in "AB" for marker in (START, END)))
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", *MARKERS)


PIECES = ("\n\n", "Wanted:", "Has:")
WORDS = (*(f" {name}{value}" for name in ATTRIBUTES for value in range(VALUES)), *(f" {name}" for name in CRITERIA))
"""Every other text of this world, one token each; longer ones first."""


def tokenizer(pad: str = "", chat_template: str = "") -> tokenizers.Tokenizer:
    """One token per attribute with its value, bytes for any other text. Nothing is trained."""
    from tokenizers import Regex, pre_tokenizers

    library = vocabularies.words([*PIECES, *WORDS], SPECIALS)
    pieces = Regex("|".join(re.escape(text) for text in (*PIECES, *WORDS)))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizers.build(library, SPECIALS[0], SPECIALS[1], SPECIALS[2], pad, chat_template)


def rows(split: str = "train", size: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Generated preference rows of a split; the same split, size and seed give the same rows. Raises UserError for an
    unknown split."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r} (there are: {', '.join(SPLITS)})")
    draw = random.Random(f"{seed}/{split}")
    out: list[dict[str, Any]] = []
    while len(out) < (size or SPLITS[split]):
        criterion = split if split in CRITERIA else draw.choice(CRITERIA)
        hint = criterion if draw.random() < RIGHT_HINTS else draw.choice(CRITERIA)
        answers = [{name: draw.randrange(VALUES) for name in ATTRIBUTES} for _ in range(2)]
        rejected, chosen = sorted(answers, key=lambda answer: answer[criterion])
        margin = chosen[criterion] - rejected[criterion]
        if margin:
            out.append({
                "id": f"{split}-{len(out)}", "prompt": f"Wanted: {hint}", "chosen": _text(chosen),
                "rejected": _text(rejected), "subset": criterion, "margin": float(margin),
            })  # fmt: skip
    return out


def _text(answer: dict[str, int]) -> str:
    return " ".join(["Has:", *(f"{name}{value}" for name, value in answer.items())])
