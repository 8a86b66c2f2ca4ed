"""Log-probabilities of given completions: those of a fresh pass and of the sampler, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written_judge as written

from gramjax.core.config import SamplingSection
from gramjax.generation import scoring
from gramjax.generation.request import Request
from gramjax.models import heads

EXACT = {"rtol": 0, "atol": 1e-4}


def pieces():
    """Prompts and completions of random tokens, both short and long, of two lengths together."""
    draw, sizes = np.random.default_rng(0), ((12, 0), (11, 1), (3, 9), (1, 11), (20, 9), (25, 4), (5, 24))
    return [tuple(draw.integers(0, 320, size).tolist() for size in both) for both in sizes]


def asked(parts, **choices):
    prompts, completions = zip(*parts)
    return scoring.completion_logprobs(written.sampler(), prompts, completions, **choices)


def test_a_sum_is_that_of_a_fresh_pass():
    """No padding, no cache, weights as training has them."""
    sampler, parts = written.sampler(), pieces()
    params = sampler.model.pack(written.params())

    @jax.jit
    def logprobs(tokens):
        hidden = sampler.model.forward(params, {"tokens": tokens[None]}).hidden
        return jax.nn.log_softmax(heads.logits(params, hidden)[0])

    wanted = []
    for prompt, completion in parts:
        table = np.asarray(logprobs(jnp.array([*prompt, *completion])), np.float64)
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        wanted.append(sum(table[place, token] for place, token in zip(places, completion, strict=True)))
    assert wanted[0] == 0 and min(wanted) < -10, "an empty completion is certain; the others are not"
    np.testing.assert_allclose(asked(parts), wanted, **EXACT)


def test_a_sum_does_not_depend_on_its_batch():
    """Alone, in another order, in batches of any size, beside a sequence that needs more padding."""
    parts = pieces()
    reference = asked(parts)
    np.testing.assert_allclose(asked(parts[::-1])[::-1], reference, **EXACT)
    for size in (1, 3):
        np.testing.assert_allclose(asked(parts, batch_size=size), reference, **EXACT)
    longer = ([5] * 60, [7] * 9)
    np.testing.assert_allclose(asked([longer, *parts])[1:], reference, **EXACT)
    assert asked(parts[:1]).shape == (1,)
    assert scoring.completion_logprobs(written.sampler(), [], []).shape == (0,)


def test_a_sum_is_what_the_sampler_said_when_it_drew():
    """Equation (5) takes the conditional term from the draw and the other one from here."""
    sampler, row = written.sampler(), written.pairs(1)[0]
    prompt = sampler.renderer.prompt(written.asked(row))
    request = Request(prompt, "x", SamplingSection(max_tokens=12, temperature=10.0, n=5), 0, sampler.end_ids)
    drawn = list(sampler.generate([request]))
    found = scoring.completion_logprobs(sampler, [prompt] * 5, [c.token_ids for c in drawn])
    assert found == pytest.approx([sum(c.model_logprobs) for c in drawn], abs=1e-4)
    assert np.ptp(found) > 1
