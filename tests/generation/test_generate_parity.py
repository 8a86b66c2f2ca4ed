"""Greedy answers are those of transformers' `generate`, token for token, and filters keep what its processors keep."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

from gramjax.checkpoint import hf_config, huggingface  # noqa: E402
from gramjax.core.config import GenerationSection  # noqa: E402
from gramjax.generation import distribution  # noqa: E402
from gramjax.generation.request import Request, Sampling  # noqa: E402
from gramjax.generation.sample import generate  # noqa: E402
from gramjax.models import decoder, model  # noqa: E402

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
VOCAB = 61
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES = {
    "llama2": ("Llama", dict(tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "llama3": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(head_dim=8, sliding_window=5)),
}
LENGTHS = (1, 17, 4, 14, 9, 2)
NEW = 24


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A tiny torch model with every weight away from its initial value, and its import."""
    prefix, extra = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **extra}, attn_implementation="eager")
    theirs = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours = hf_config.read_config(folder)
    params = huggingface.load_params(folder, decoder.specs(ours), ours).params
    network = model.build("decoder", ours, None, "float32")
    return theirs, network, network.pack_for_decoding(jax.tree.map(jax.numpy.asarray, params))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]


def reference(theirs, prompts, **choices):
    """New tokens [prompts, new] and raw logits of transformers' greedy generate, prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = theirs.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **choices,
    )  # fmt: skip
    return out.sequences[:, longest:].tolist(), torch.stack(out.logits, 1).double().numpy()


def test_greedy_equals_transformers(pair):
    """Prompts of 1 to 17 tokens in four slots, beyond the sliding windows; one of them with repetition penalty."""
    theirs, network, weights = pair
    settings = GenerationSection(slots=4, steps_per_call=8, prefill_length=16)
    plain, penalised = prompts(), prompts()[3]
    requests = [Request(penalised, "penalised", Sampling(NEW, temperature=0.0, repetition_penalty=1.25))]
    requests += [
        Request(prompt, i, Sampling(NEW, temperature=0.0), candidates=tuple(range(VOCAB)))
        for i, prompt in enumerate(plain)
    ]
    found = {c.request.id: c for c in generate(network, weights, requests, settings)}
    assert found["penalised"].token_ids == reference(theirs, [penalised], repetition_penalty=1.25)[0][0]
    tokens, logits = reference(theirs, plain)
    assert [found[i].token_ids for i in range(len(plain))] == tokens
    assert found["penalised"].token_ids != tokens[3] and len({t for row in tokens for t in row}) > 10
    want = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose([found[i].candidate_logprobs for i in range(len(plain))], want, atol=1e-4)


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0.7), Sampling(top_k=7), Sampling(top_p=0.7), Sampling(min_p=0.1),
    Sampling(repetition_penalty=1.4),
    Sampling(temperature=1.6, top_k=20, top_p=0.9, min_p=0.03, repetition_penalty=1.2),
], ids=["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "all"])  # fmt: skip
def test_the_distribution_equals_that_of_transformers(sampling):
    """The same settings through the processors of transformers, in the order in which it applies them."""
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(3)
    logits = (2.5 * rng.normal(size=(64, VOCAB))).astype(np.float32)
    history = rng.integers(0, VOCAB, (64, 12))
    scores = torch.tensor(logits)
    for process in (
        theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        theirs.TemperatureLogitsWarper(sampling.temperature),
        *([theirs.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        theirs.TopPLogitsWarper(sampling.top_p),
        theirs.MinPLogitsWarper(sampling.min_p),
    ):
        scores = process(torch.tensor(history), scores)
    seen = np.zeros((64, VOCAB), bool)
    np.put_along_axis(seen, history, True, axis=1)
    ones = np.ones(64, np.float32)
    knobs = distribution.Knobs(
        sampling.temperature * ones, np.full(64, sampling.top_k, np.int32), sampling.top_p * ones,
        sampling.min_p * ones, sampling.repetition_penalty * ones,
    )  # fmt: skip
    got = distribution.truncated(distribution.scaled(logits, knobs, seen), knobs)
    np.testing.assert_allclose(jax.nn.softmax(got, axis=-1), torch.softmax(scores, -1).numpy(), atol=1e-6)
