"""A judge whose weights are written by hand: it always gives a rationale in the right form, for the permutation world.

Each token of the reply follows from the one before, so nothing is trained. At the answer it writes A or B (or, on wish,
something unreadable) with logits that hold a lean towards the response shown first, and a term that depends on what the
prompt says through one layer of attention with random projections.
"""

import functools

import jax.numpy as jnp
import numpy as np

from gramjax.core import spec, tree
from gramjax.core.config import DataSection, GenerationSection, SamplingSection
from gramjax.data import judge_prompts, tokenizer
from gramjax.data.recipes import permutation_world as world
from gramjax.data.text import Renderer
from gramjax.generation.judging import Judging
from gramjax.generation.sampler import Sampler
from gramjax.models import decoder, model

ARCH = decoder.Config(
    vocab_size=320, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16,
    tie_word_embeddings=False, max_position_embeddings=128,
)  # fmt: skip
CHAIN = ("<think>\nFeedback:\nResponse A:", " yes", "\nResponse B:", " no", " is better.\n</think>\n<answer>")
UNREADABLE = " d"
CERTAIN = 60.0
"""Logit of what follows for sure."""


@functools.cache
def tokens():
    """The tokenizer of the world."""
    return tokenizer.load("recipe:permutation_world")


def single(text):
    """The one token of a text."""
    (token,) = tokens().encode_text(text, continuing=True)
    return token


def params(lean=0.0, content=1.5, unreadable=None):
    """Parameters at rest. `lean`: logit for the response shown first; `content`: spread of what the prompt adds;
    `unreadable`: logit of an answer that is no letter, None for never."""
    network = model.build("decoder", ARCH, None, "float32")
    flat = {
        path: np.ones(s.shape, np.float32) if s.init == "ones" else np.zeros(s.shape, np.float32)
        for path, s in tree.flatten(network.specs(), is_leaf=spec.is_spec).items()
    }
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(64, 64)))[0]
    after = [single(world._LAST), *map(single, CHAIN), single("</answer>")]
    embed = generator.normal(size=(320, 64)) / 8
    embed[after] = directions[: len(after)]
    chain, letter_embed, said = directions[: len(after)], directions[-2], directions[-1]
    head, sure = flat["lm_head"], CERTAIN / 8  # a normalised hidden state has length 8
    embed[[single("A"), single("B")]] = letter_embed
    for here, token in zip(chain, after[1:-1], strict=False):
        head[:, token] = sure * here
    head[:, single("</answer>")] = sure * letter_embed
    head[:, tokens().eos_id] = sure * chain[-1]
    for letter, sign in (("A", 1), ("B", -1)):
        head[:, single(letter)] = (sure + sign * lean / 16) * chain[-2] + sign * said / 4
    if unreadable is not None:
        head[:, single(UNREADABLE)] += (sure + unreadable / 8) * chain[-2]
        embed[single(UNREADABLE)] = letter_embed
    flat["embed"] = embed
    for name, scale in (("q", 4.0), ("k", 4.0), ("v", 1.0)):
        shape = flat[f"layers/000/attn/{name}"].shape
        flat[f"layers/000/attn/{name}"] = scale / 8 * generator.normal(size=shape)
    flat["layers/000/attn/o"] = content / 8 * generator.normal(size=(2, 16, 1)) * said
    return tree.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in flat.items()})


@functools.cache
def sampler(lean=0.0, content=1.5, unreadable=None, slots=8, max_length=world.MAX_LENGTH):
    """The judge, ready to answer."""
    network = model.build("decoder", ARCH, None, "float32")
    renderer = Renderer(tokens(), DataSection(max_length=max_length))
    weights = network.pack_for_decoding(params(lean, content, unreadable))
    settings = GenerationSection(slots=slots, steps_per_call=4, prefill_length=32)
    return Sampler(network, weights, renderer, (tokens().eos_id,), settings)


def judging(n=4, order="alternate", temperature=1.0, **choices):
    """Settings of short judgements with the world's instruction."""
    sampling = SamplingSection(max_tokens=16, temperature=temperature, n=n)
    return Judging(**{"sampling": sampling, "order": order, "instruction": world.JUDGE_PROMPT, **choices})


def pairs(count=12):
    """Unlabelled pairs of the world."""
    return [{k: v for k, v in row.items() if k != "gold"} for row in world.rows("unlabelled", count)]


def asked(row, swapped=False):
    """The judge's prompt of a row, as text."""
    shown = row["responses"][::-1] if swapped else row["responses"]
    return judge_prompts.judge_prompt(row["prompt"], shown, world.JUDGE_PROMPT)
