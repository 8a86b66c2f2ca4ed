"""The real small model speaks its golden text through the sampler."""

import json

import jax
import numpy as np

from gramjax.checkpoint.source import open_source
from gramjax.core.config import DataSection, GenerationSection
from gramjax.data import tokenizer
from gramjax.data.text import Renderer
from gramjax.generation.request import Request, Sampling
from gramjax.generation.sampler import Sampler
from gramjax.models import decoder, model


def test_greedy_text_of_stories260k(data_dir):
    """From the start token, from a prompt, and from the middle of the golden text at once; stop texts in real text."""
    folder = data_dir / "stories260k"
    golden = json.loads((folder / "golden.json").read_text())
    source = open_source(folder / "stories260K.bin")
    params = jax.tree.map(jax.numpy.asarray, source.load(decoder.specs(source.config), source.config).params)
    network = model.build("decoder", source.config, None, "float32")
    renderer = Renderer(tokenizer.load(str(folder / "tok512.bin")), DataSection())
    settings = GenerationSection(slots=4, prefill_length=16)
    sampler = Sampler(network, network.pack_for_decoding(params), renderer, (golden["eos"],), settings)

    story, told = golden["greedy_from_bos"]["ids"][:110], golden["prompt"]  # the cache grows once
    logits = np.load(folder / "golden_logits.npy")
    prompt, whole = told["prompt_ids"], told["greedy_ids"]

    def greedy(tokens, upto, **sampling):
        name = f"{len(tokens)} {sampling}"
        count = upto - len(tokens)
        return Request(tokens, name, Sampling(count, temperature=0.0, **sampling), 0, sampler.end_ids, (), (426, 13))

    asked = [
        greedy(story[:1], len(story)),
        greedy(prompt, len(whole)),
        greedy(story[:29], len(story)),
        greedy(prompt, len(whole), stop=("toys. He",)),
    ]
    found = {id(c.request): c for c in sampler.generate(asked)}
    start, answer, middle, stopped = (found[id(request)] for request in asked)
    assert story[:1] + start.token_ids == story and start.finish_reason == "length"
    assert story[:29] + middle.token_ids == story
    assert prompt + answer.token_ids == whole
    assert sampler.decode(whole) == told["text_out"]
    assert told["text_out"] == sampler.decode(prompt) + answer.text
    assert sampler.decode(prompt) + stopped.text == told["text_out"].split("toys. He")[0]

    want = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    rows = min(len(want), len(start.token_ids))
    np.testing.assert_allclose(start.candidate_logprobs[:rows], want[:rows, [426, 13]], atol=1e-4)
