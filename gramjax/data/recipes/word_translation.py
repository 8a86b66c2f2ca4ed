"""Preference pairs that the package generates: translations into an invented language, one right, one wrong.

The prompt lists four words, `Translate: river stone cloud apple`. An answer gives their fixed partners in order,
`Translation: mirel tavon sedu karim`; the chosen answer is right, the rejected one has two to four wrong words
(partners of words that were not asked). What makes an answer right is only its relation to the prompt:

- by construction the longer answer (in characters; in words both are equal) is chosen in exactly half of the rows;
- right and wrong words are drawn alike, so single words and word counts say nothing;
- the word sets of the prompts of `valid` occur neither in `train` nor in `unlabelled`.

Splits: `unlabelled` (pairs with at most one wrong word each, for GRAM's stage 1), `train`, `valid`.

Settings that learn it from scratch: 3 layers of width 128, mlp 256 to 384, 8 heads of 16, `init_scale` 0.06 (with
0.02 the first stage stays on a plateau about three times as long), AdamW with betas (0.9, 0.98), batch 64, 200 steps
of stage 1 at 2e-3, 300 steps of stage 2 at 1e-3 with `label_smoothing` 0.05. Measured on the 400 rows of `valid`:
both-order accuracy 0.995 and swap consistency 0.988 with `gramjax train` (541,568 parameters, seed 0; 0.995 and 0.958
after 200 steps of stage 2); 0.998 to 1.000 and 0.945 to 0.993 over three seeds of a plain program of this shape. Four
heads are less certain: of four such runs, with two or three layers, one ended at 0.85.
"""

import hashlib
import random
from typing import Any

from gramjax.core.errors import UserError
from gramjax.data import tokenizer as tokenizers
from gramjax.data import vocabularies
from gramjax.data.formats import END, QUESTION, START

DICTIONARY = {
    "river": "mirel", "stone": "tavon", "cloud": "sedu", "apple": "karim",
    "window": "osta", "garden": "velunor", "bread": "pilo", "mountain": "hadri",
    "candle": "zemu", "forest": "lorvek", "bridge": "anit", "winter": "dosrila",
    "silver": "bekum", "letter": "yaro", "harbour": "nuviten", "mirror": "goshi",
    "feather": "ruden", "island": "fethal", "pepper": "imsa", "castle": "woludar",
    "lantern": "cheko", "thunder": "belit", "meadow": "xanu", "copper": "torviga",
    "basket": "ulem", "spider": "jashen", "orchard": "pendovi", "velvet": "krosa",
    "anchor": "filun", "desert": "methora", "violin": "gavi", "honey": "sorbek",
}  # fmt: skip
"""The words and their partners: what a judge has to learn."""

WORDS = 4
LEAST_WRONG = 2
SPLITS = {"unlabelled": 6000, "train": 6000, "valid": 400}
"""Splits and their default sizes."""

JUDGE_PROMPT = "Which answer is right?"
"""A short judge's instruction, for `config.data.judge_prompt`: with it a comparison has 39 tokens."""

CUE = "#Preferred:"
MAX_LENGTH = 40
"""Tokens of a comparison (39) or a stage-1 text (32), rounded up; for `config.data.max_length`."""

VERSION = hashlib.sha256(f"1{DICTIONARY}{WORDS}{LEAST_WRONG}".encode()).hexdigest()
"""Names the generator in the fingerprint of a run's data."""

MARKERS = (QUESTION, *(marker.format(letter) for letter in "AB" for marker in (START, END)), CUE)
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", *MARKERS)


def tokenizer(pad: str = "", chat_template: str = "") -> tokenizers.Tokenizer:
    """One token per word and per marker, bytes for any other text. No download, no training."""
    words = [*DICTIONARY, *DICTIONARY.values(), "answer", "is", "right"]
    vocabulary = ["\n\n", "Translate", "Translation", "Which", *(f" {word}" for word in words)]
    library = vocabularies.words(vocabulary, SPECIALS)
    return tokenizers.build(library, SPECIALS[0], SPECIALS[1], SPECIALS[2], pad, chat_template)


def _held_out(asked: list[str]) -> bool:
    """One word set in ten belongs to `valid`, whatever the order of its words."""
    return hashlib.sha256(" ".join(sorted(asked)).encode()).digest()[0] % 10 == 0


def _answer(asked: list[str], wrong: int, draw: random.Random) -> str:
    words = [DICTIONARY[word] for word in asked]
    others = draw.sample([partner for word, partner in DICTIONARY.items() if word not in asked], wrong)
    for place, other in zip(draw.sample(range(WORDS), wrong), others, strict=True):
        words[place] = other
    return " ".join(["Translation:", *words])


def rows(split: str = "train", size: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Generated rows of a split: `preference` rows, or `pair_unlabelled` ones for `unlabelled`.

    The same split, size and seed give the same rows. Raises UserError for an odd size (half of the rows have the
    longer answer chosen) or an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r} (there are: {', '.join(SPLITS)})")
    size = size or SPLITS[split]
    if size % 2:
        raise UserError(f"recipe word_translation: an even number of rows is needed, {size} asked")
    draw = random.Random(f"{seed}/{split}")
    out: list[dict[str, Any]] = []
    while len(out) < size:
        asked = draw.sample(list(DICTIONARY), WORDS)
        if _held_out(asked) != (split == "valid"):
            continue
        row = {"id": f"{split}-{len(out)}", "prompt": " ".join(["Translate:", *asked])}
        if split == "unlabelled":
            wrong = draw.choice([(0, 1), (1, 0), (1, 1)])
            first, second = (_answer(asked, count, draw) for count in wrong)
            if first != second:
                out.append({**row, "responses": [first, second]})
            continue
        wrong_words = draw.randint(LEAST_WRONG, WORDS)
        chosen, rejected = _answer(asked, 0, draw), _answer(asked, wrong_words, draw)
        longer = len(chosen) - len(rejected)
        if longer and (longer > 0) == (len(out) % 2 == 0):
            out.append({**row, "chosen": chosen, "rejected": rejected, "subset": f"{wrong_words} wrong"})
    return out
