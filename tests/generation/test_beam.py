"""Beam search against everything that must agree with it: all continuations, a search in plain Python, greedy answers,
itself in other batches, and transformers.

The search knows nothing of a model, so most tests hand it a step of their own: a table of logits for every sequence of
a tiny vocabulary, whose cache is the sequence as a number. A beam that gets the wrong row of the cache is seen at once.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_sampler as reference
from reference_sampler import SETTINGS, VOCAB, letters, tiny

from gramjax.core.config import GenerationSection
from gramjax.core.errors import UserError
from gramjax.generation import beam, sample
from gramjax.generation.request import Request, Sampling, Statistics
from gramjax.generation.sampler import Sampler

V, T = 5, 4
"""Tokens and longest continuation of the tables."""


# -- models that are tables --------------------------------------------------------------------------------------------


def tables(count: int, seed: int = 0) -> np.ndarray:
    """Log-probabilities [count, V ** T, V] of the next token after every sequence, of one model per prompt."""
    return reference.log_softmax(np.random.default_rng(seed).normal(size=(count, V**T, V)) * 2.0)


def code(sequence) -> int:
    """A sequence of less than T tokens as the number that the cache holds; no two have the same."""
    return functools.reduce(lambda number, token: number * V + token, sequence, 1) % V**T


@functools.partial(jax.jit, static_argnames=("num_beams",))
def search_tables(table_BSV, terms, num_beams):
    """What a source-side memory would be, stays outside the cache: one table per prompt, shared by its beams."""
    B = table_BSV.shape[0]

    def forward(tokens_N1, cache_N):
        cache_N = (cache_N * V + tokens_N1[:, 0]) % V**T
        return jax.vmap(lambda table, row: table[row])(table_BSV, cache_N.reshape(B, -1)).reshape(-1, V), cache_N

    cache = jnp.full((B * num_beams,), code(()), jnp.int32)
    state = beam.begin(cache, table_BSV[:, code(())] + 7.0, terms, num_beams, T)
    return beam.advance(beam.Step(forward), state, terms, T)


def found_in_tables(table, terms, num_beams, shift=3.0):
    """[(tokens, score)] per prompt, best first; logits are no log-probabilities, so they are shifted."""
    state = jax.device_get(search_tables(jnp.asarray(table + shift, jnp.float32), terms, num_beams))
    out = []
    for b in range(len(table)):
        kept = [k for k in range(num_beams) if state.done_scores[b, k] > -np.inf]
        lengths = state.done_lengths[b]
        out.append([(state.done_tokens[b, k, : lengths[k]].tolist(), state.done_scores[b, k]) for k in kept])
    return out


def terms_of(rows, limits=None, stops=(0,), allowed=None):
    """Terms of (length_penalty, early_stopping) per prompt."""
    penalties, stopping = zip(*rows)
    return beam.Terms(
        np.asarray(limits or [T] * len(rows), np.int32),
        np.tile(np.asarray(stops, np.int32), (len(rows), 1)),
        np.asarray(penalties, np.float32),
        np.asarray([beam.EARLY_STOPPING.index(name) for name in stopping], np.int32),
        allowed,
    )


def assert_hypotheses(found, want):
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in want]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in want], atol=1e-5)


def all_continuations(table, penalty):
    """Every sequence that ends with token 0 or has T tokens, with its score, best first."""
    out = []
    for length in range(1, T + 1):
        for tokens in itertools.product(range(V), repeat=length):
            ended = tokens[-1] == 0
            if 0 in tokens[:-1] or not (ended or length == T):
                continue
            total = sum(table[code(tokens[:i]), token] for i, token in enumerate(tokens))
            out.append((list(tokens), total / length**penalty))
    return sorted(out, key=lambda item: -item[1])


KINDS = [(p, e) for p in (1.0, 0.0, 2.0, -0.5) for e in beam.EARLY_STOPPING]


@pytest.mark.smoke
def test_with_enough_beams_it_is_the_best_of_all_continuations():
    """320 beams hold everything that goes on; however it may stop, its hypotheses are exactly the best there are."""
    num_beams = (V - 1) ** (T - 1) * V
    table = tables(len(KINDS))
    for b, found in enumerate(found_in_tables(table, terms_of(KINDS), num_beams)):
        assert_hypotheses(found[:50], all_continuations(table[b], KINDS[b][0])[:50])


def reference_search(table, num_beams, penalty, stopping, limit=T, stops=(0,), allowed=None):
    """The search once more, with lists."""
    beams, done = [([], 0.0)], []
    for count in range(1, limit + 1):
        grown = [
            ([*tokens, token], total + table[code(tokens), token])
            for tokens, total in beams for token in range(V) if allowed is None or token in allowed
        ]  # fmt: skip
        grown = sorted(grown, key=lambda item: -item[1])[: (1 + len(stops)) * num_beams]
        ended = [item for item in grown if item[0][-1] in stops or count == limit]
        new = [(tokens, total / count**penalty) for tokens, total in grown[:num_beams] if (tokens, total) in ended]
        done = sorted(done + new, key=lambda item: -item[1])[:num_beams]
        beams = [item for item in grown if item not in ended][:num_beams]
        if len(done) == num_beams:
            length = limit if stopping == "never" and penalty > 0 else count
            hopeless = not beams or beams[0][1] / length**penalty <= done[-1][1]
            if hopeless or stopping == "True":
                break
    return done


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_it_is_the_search_in_plain_python(num_beams):
    """Every penalty and way to stop, prompts with other limits, two end tokens, and a mask of allowed tokens."""
    kinds = KINDS * 6
    limits = [(T, T, 2, 3, 1)[b % 5] for b in range(len(kinds))]
    masks = [(0, 1, 2, 3, 4) if b % 3 else (0, 2, 3) for b in range(len(kinds))]
    allowed = np.asarray([[token in mask for token in range(V)] for mask in masks])
    table = tables(len(kinds), seed=num_beams)
    found = found_in_tables(table, terms_of(kinds, limits, (0, 3), allowed), num_beams)
    lengths = set()
    for b, (penalty, stopping) in enumerate(kinds):
        want = reference_search(table[b], num_beams, penalty, stopping, limits[b], (0, 3), masks[b])
        assert_hypotheses(found[b], want)
        lengths |= {len(tokens) for tokens, _ in want}
    assert lengths == set(range(1, T + 1))


def test_a_prompt_without_room_is_left_alone():
    """Rows that only fill a batch: no hypotheses, and no step is made for them."""
    terms = terms_of([(1.0, "False")] * 2, limits=[0, T])
    first, second = found_in_tables(tables(2), terms, 2)
    assert first == [] and len(second) == 2
    state = search_tables(jnp.asarray(tables(2), jnp.float32), terms_of([(1.0, "False")] * 2, limits=[0, 0]), 2)
    assert state.count == 1


# -- decoders ----------------------------------------------------------------------------------------------------------


def beams(num_beams, **settings):
    return Sampling(**{"max_tokens": 20, "temperature": 0.0, "num_beams": num_beams, "n": num_beams, **settings})


def prompts(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def searched(requests, family="qwen2", settings=SETTINGS, **choices):
    network, _, weights = tiny(family)
    found = list(beam.search(network, weights, requests, settings, letters, **choices))
    assert [request for request, _ in found] == list(requests)
    return [hypotheses for _, hypotheses in found]


LENGTHS, END = (3, 40, 1, 33), (14, 17, 37)
BEST = [Request(p, i, beams(2), stop_ids=END) for i, p in enumerate(prompts(*LENGTHS))]


@pytest.fixture(scope="module")
def hypotheses():
    """The two best answers of every prompt, all searched together and read at once."""
    statistics = Statistics()
    found = searched(BEST, settings=GenerationSection(slots=8), statistics=statistics)
    assert (statistics.prefills, statistics.prompt_tokens, statistics.completions) == (1, sum(LENGTHS), 8)
    assert statistics.calls == 1 and statistics.steps < 20
    return found


def test_scores_are_the_models_log_probabilities(hypotheses):
    """Those of a fresh pass over prompt and answer; the ranking follows from them."""
    completions = [c for found in hypotheses for c in found]
    for completion, logits in zip(completions, reference.fresh_logits(completions)):
        want = reference.log_softmax(logits)[np.arange(len(logits)), completion.token_ids]
        np.testing.assert_allclose(completion.logprobs, want, atol=1e-4)
        assert completion.model_logprobs == completion.logprobs
        assert beam.score(completion) == pytest.approx(want.sum() / len(want), abs=1e-4)
    for found in hypotheses:
        assert [c.sample for c in found] == [0, 1] and found[0].token_ids != found[1].token_ids
        assert beam.score(found[0]) >= beam.score(found[1])


def test_what_ends_a_hypothesis(hypotheses):
    assert {c.finish_reason for found in hypotheses for c in found} == {"stop", "length"}
    for c in (c for found in hypotheses for c in found):
        ended = c.finish_reason == "stop"
        assert ended == (c.token_ids[-1] in END) and (ended or len(c.token_ids) == 20)
        assert c.stop == (c.token_ids[-1] if ended else None)
        assert c.text == letters(c.token_ids[:-1] if ended else c.token_ids)
        assert not set(END) & set(c.token_ids[:-1])


def test_the_batch_and_the_calls_change_nothing(hypotheses):
    """One prompt at a time, read in pieces, in many calls, with a cache that grows on the way."""
    statistics = Statistics()
    settings = GenerationSection(slots=2, steps_per_call=8, prefill_length=16)
    for i in (1, 3):
        (alone,) = searched(BEST[i : i + 1], settings=settings, statistics=statistics)
        assert [c.token_ids for c in alone] == [c.token_ids for c in hypotheses[i]]
        for one, other in zip(alone, hypotheses[i]):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert statistics.prefills == 8 and statistics.calls > 2


def test_one_beam_is_greedy():
    network, _, weights = tiny()
    requests = [Request(p, i, beams(1, max_tokens=8), stop_ids=END) for i, p in enumerate(prompts(3, 9, 1, 12))]
    greedy = {c.request.id: c for c in sample.generate(network, weights, requests, SETTINGS, letters)}
    assert {c.finish_reason for c in greedy.values()} == {"stop", "length"}
    for request, (found,) in zip(requests, searched(requests)):
        want = greedy[request.id]
        assert (found.token_ids, found.finish_reason, found.text) == (want.token_ids, want.finish_reason, want.text)
        np.testing.assert_allclose(found.logprobs, want.logprobs, atol=1e-4)


def test_requests_of_one_batch_keep_their_own_terms():
    """Other limits, end tokens, numbers of answers and allowed tokens beside one another, in either order."""
    (prompt,) = prompts(9)
    asked = [
        Request(prompt, 0, beams(2, max_tokens=12)),
        Request(prompt, 1, beams(2, max_tokens=0)),
        Request(prompt, 2, beams(2, max_tokens=3, n=1)),
        Request(prompt, 3, beams(2, max_tokens=12, ignore_eos=True), stop_ids=(5,), allowed=(5, 7, 11)),
        Request(prompt, 4, beams(2, max_tokens=12, stop_ids=(7,)), stop_ids=(5,), allowed=(5,)),
    ]
    wide = dataclasses.replace(SETTINGS, slots=16, steps_per_call=16)
    found = searched(asked, settings=wide)
    turned = searched(asked[::-1], settings=wide)[::-1]
    assert [[c.token_ids for c in best] for best in found] == [[c.token_ids for c in best] for best in turned]
    plain, nothing, short, masked, single = found
    assert [[len(c.token_ids) for c in best] for best in found[:4]] == [[12, 12], [0], [3], [12, 12]]
    assert nothing[0].finish_reason == short[0].finish_reason == "length"
    assert {token for c in masked for token in c.token_ids} <= {5, 7, 11}
    assert {token for c in plain for token in c.token_ids} - {5, 7, 11}
    assert [c.token_ids for c in single] == [[5]], "there are no more hypotheses than are possible"


def sampler_of(kind):
    network, _, weights = tiny()
    return kind(network, weights, None, (), SETTINGS)


def test_items_come_back_in_order(monkeypatch):
    """As `Sampler.answered`: items with no request, one or several, more items than fit a window."""
    monkeypatch.setattr(Sampler, "decode", lambda self, ids: letters(ids))
    rows = [Request(p, i, beams(2, max_tokens=1)) for i, p in enumerate(prompts(3, 9, 1, 12, 5, 7))]
    items = [[], rows[:1], [], [], rows[1:4], rows[4:], []]
    found = list(sampler_of(beam.BeamSampler).answered(items, lambda item: item, window=2))
    assert [item for item, _ in found] == items
    want = iter(searched(rows))
    for item, answers in found:
        assert [[c.token_ids for c in got] for got in answers] == [[c.token_ids for c in next(want)] for _ in item]


def test_what_a_search_cannot_do_is_refused():
    network, _, weights = tiny()
    (prompt,) = prompts(3)
    with pytest.raises(UserError, match="candidates"):
        searched([Request(prompt, 0, beams(2), candidates=(1,))])
    for wrong in ({"temperature": 0.5}, {"top_k": 3}, {"stop": ("a",)}, {"repetition_penalty": 1.1}, {"n": 3}):
        with pytest.raises(UserError, match=next(iter(wrong)) if "temperature" in wrong else "beam search"):
            searched([Request(prompt, 0, beams(2, **wrong))])
    for wrong in ({"length_penalty": 0.5}, {"early_stopping": "never"}):
        with pytest.raises(UserError, match="num_beams"):
            list(sample.generate(network, weights, [Request(prompt, 0, Sampling(**wrong))], SETTINGS))
    with pytest.raises(UserError, match="beams"):
        list(sample.generate(network, weights, [Request(prompt, 0, beams(2))], SETTINGS))
    with pytest.raises(UserError, match="watched"):
        list(sampler_of(beam.BeamSampler).generate([], watch=lambda answer: None))


# -- transformers ------------------------------------------------------------------------------------------------------

SIZES = dict(
    vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip
ENDS = [2, 5, 8]
FEW = [(0.0, "False"), (1.0, "never"), (-1.0, "True"), (0.5, "True")]
PARITY = {
    "Llama": (dict(tie_word_embeddings=False), 0.12, 4, KINDS),
    "Qwen2": (dict(use_sliding_window=True, sliding_window=6, max_window_layers=1), 0.07, 3, FEW),
    "Qwen3": (dict(head_dim=16), 0.07, 2, FEW),
}


@pytest.mark.parametrize("family", list(PARITY))
def test_tokens_and_scores_are_those_of_transformers(family, tmp_path):
    """A batch of mixed lengths, all hypotheses, every number of beams, length penalty and way to stop."""
    torch = pytest.importorskip("torch", reason="parity needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    from gramjax.checkpoint import hf_config, huggingface
    from gramjax.models import decoder, model

    extra, noise, num_beams, kinds = PARITY[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **extra, attn_implementation="eager")
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours = hf_config.read_config(tmp_path)
    network = model.build("decoder", ours, None, "float32")
    weights = network.pack_for_decoding(huggingface.load_params(tmp_path, decoder.specs(ours), ours).params)

    rng = np.random.default_rng(1)
    asked = [rng.integers(3, 23, length).tolist() for length in (3, 9, 1, 16)]
    tokens = torch.tensor([[0] * (16 - len(p)) + p for p in asked])
    mask = torch.tensor([[0] * (16 - len(p)) + [1] * len(p) for p in asked])
    seen = set()
    for penalty, stopping in kinds:
        with torch.no_grad():
            out = theirs.generate(
                tokens, attention_mask=mask, num_beams=num_beams, num_return_sequences=num_beams,
                length_penalty=penalty, early_stopping={"False": False, "True": True}.get(stopping, stopping),
                max_new_tokens=12, eos_token_id=ENDS, pad_token_id=0, do_sample=False,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        sampling = beams(num_beams, max_tokens=12, length_penalty=penalty, early_stopping=stopping)
        requests = [Request(p, i, sampling, stop_ids=tuple(ENDS)) for i, p in enumerate(asked)]
        found = beam.search(network, weights, requests, GenerationSection(slots=4 * num_beams))
        completions = [c for _, best in found for c in best]
        assert len(completions) == 4 * num_beams
        for completion, ids, score in zip(completions, out.sequences[:, 16:].tolist(), out.sequences_scores):
            ends = [place + 1 for place, token in enumerate(ids) if token in ENDS]
            where = f"{num_beams} beams, {penalty}, {stopping}, prompt {completion.request.id}"
            assert completion.token_ids == ids[: ends[0] if ends else None], where
            assert beam.score(completion) == pytest.approx(float(score), abs=1e-4), where
            seen.add((completion.finish_reason, len(completion.token_ids)))
    assert len(seen) > 3 and ("length", 12) in seen
