"""One fixed batch through the loss of TRL's GRPOTrainer and through ours, for every loss that TRL has.

    PYTHONPATH=. OTHER/bin/python benchmarks/parity_trl.py [--json benchmarks/results/parity_trl.json]

TRL is no dependency: it lives in an environment of its own (`pip install trl torch` beside this package), whose Python
runs both sides. A Llama of 20 thousand random weights is made by transformers and read by both. The trainer is TRL's
own, and so is everything from rewards to the loss: only what would be drawn (prompts, completions, the sampler's
log-probabilities) and the log-probabilities of the old and the reference policy are given, to both sides. Compared are
advantages, the loss, and the gradient of every parameter (the largest difference, over the largest gradient).

Expected: differences of at most 1e-5 throughout.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np

GROUPS, SIZE, LIMIT, VOCABULARY = 3, 4, 10, 64
"""Prompts, answers to each, longest answer allowed, tokens."""

TEMPERATURE = 0.9
WEIGHTS = (1.0, 0.5)
"""Of the two reward functions."""

CORRECTED = {"use_vllm": True, "loss_type": "dapo"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"loss": "grpo"}),
    "grpo, clip-higher": ({"loss_type": "grpo", "epsilon_high": 0.28}, {"loss": "grpo", "epsilon_high": 0.28}),
    "grpo, delta": ({"loss_type": "grpo", "delta": 1.4}, {"loss": "grpo", "delta": 1.4}),
    "grpo, on-policy": ({"loss_type": "grpo", "old": False}, {"loss": "grpo"}),
    "grpo, k3": (
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
        {"loss": "grpo", "beta": 0.04, "kl_estimator": "k3"},
    ),
    "grpo, k3 times the ratio": ({"loss_type": "grpo", "beta": 0.04}, {"loss": "grpo", "beta": 0.04,
                                                                      "kl_estimator": "k3_is"}),
    "grpo, delta, k3 times the ratio": (
        {"loss_type": "grpo", "delta": 1.4, "beta": 0.04},
        {"loss": "grpo", "delta": 1.4, "beta": 0.04, "kl_estimator": "k3_is"},
    ),
    "gspo, k3 times the ratio": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04},
        {"loss": "gspo", "beta": 0.04, "kl_estimator": "k3_is"},
    ),
    "bnpo": ({"loss_type": "bnpo"}, {"loss": "bnpo"}),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {"loss": "dr_grpo"}),
    "dapo": ({"loss_type": "dapo"}, {"loss": "dapo"}),
    "dapo, batch scaling": ({"loss_type": "dapo", "scale_rewards": "batch"}, {"loss": "dapo", "advantage": "batch"}),
    "dapo, GDPO": (
        {"loss_type": "dapo", "multi_objective_aggregation": "normalize_then_sum"},
        {"loss": "dapo", "aggregate": "normalize_then_sum"},
    ),
    "dapo, k3": (
        {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": False},
        {"loss": "dapo", "beta": 0.04, "kl_estimator": "k3"},
    ),
    "dapo, entropy bonus": ({"loss_type": "dapo", "entropy_coef": 0.02}, {"loss": "dapo", "entropy_coef": 0.02}),
    "grpo, entropy bonus": ({"loss_type": "grpo", "entropy_coef": 0.02}, {"loss": "grpo", "entropy_coef": 0.02}),
    "dapo, top entropy 0.3": (
        {"loss_type": "dapo", "top_entropy_quantile": 0.3}, {"loss": "dapo", "top_entropy_quantile": 0.3},
    ),
    "dapo, off-policy mask": (
        {"loss_type": "dapo", "off_policy_mask_threshold": 0.05}, {"loss": "dapo", "off_policy_mask_threshold": 0.05},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2},
        {"loss": "gspo", "epsilon": 3e-2, "epsilon_high": 4e-2},
    ),
    "dapo, sequence level": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence"}, {"loss": "gspo", "aggregation": "token"},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, {"loss": "cispo", "ratio_cap": 5.0}),
    "cispo, cap 1.2": ({"loss_type": "cispo", "epsilon_high": 1.2}, {"loss": "cispo", "ratio_cap": 1.2}),
    "sapo": ({"loss_type": "sapo"}, {"loss": "sapo"}),
    "luspo": ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, {"loss": "luspo"}),
    "luspo, token level": ({"loss_type": "luspo"}, {"loss": "grpo", "aggregation": "sequence_sum"}),
    "vespo": ({"loss_type": "vespo"}, {"loss": "vespo"}),
    "vespo, token_truncate": (
        {"use_vllm": True, "loss_type": "vespo", "vllm_importance_sampling_mode": "token_truncate"},
        {"loss": "vespo", "correction": "token_truncate", "correction_cap": 3.0},
    ),
    **{
        f"dapo, {mode}": (
            {**CORRECTED, "vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.3}
            | ({"vllm_importance_sampling_clip_min": 0.8} if mode == "token_mask" else {}),
            {"loss": "dapo", "correction": mode, "correction_cap": 1.3, "correction_floor": 0.8},
        )
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}  # fmt: skip

WITH_BETA = ("bnpo", "dr_grpo", "dapo, sequence level", "cispo", "sapo", "luspo", "luspo, token level", "vespo")
CASES |= {
    f"{name}, {title}": (
        {**CASES[name][0], "beta": 0.1, "use_bias_correction_kl": kind == "k3_is"},
        {**CASES[name][1], "beta": 0.1, "kl_estimator": kind},
    )
    for name in WITH_BETA
    for kind, title in (("k3", "k3"), ("k3_is", "k3 times the ratio"))
}
"""Settings of TRL (`old`: give the old log-probabilities) and ours."""

COMPARED = ("loss", "advantages", "gradient")

AWAY = {
    "grpo, entropy bonus": "TRL's bonus is the mean over tokens whatever the loss divides by; ours is averaged as the "
    "loss is, here over sequences",
}
"""Differences that are meant, and why."""


def fixed() -> dict[str, Any]:
    """The batch: tokens, rewards of two functions (the answers of the last prompt are equally good), and by how much
    the log-probabilities of the old policy, the reference and the sampler differ from the policy's."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCABULARY, n).tolist() for n in (3, 6, 4)]
    lengths = [4, 10, 7, 1, 9, 2, 10, 5, 3, 8, 6, 10]
    answers = [rng.integers(3, VOCABULARY, n).tolist() for n in lengths]
    rewards = np.array([[1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1], [0.2, 0.9, 0.4, 0.1, 0, 0.3, 0.8, 0.6, 0, 0, 0, 0]])
    noise = [rng.normal(0, 0.25, (3, n)).astype(np.float32) for n in lengths]
    return {"prompts": [p for p in prompts for _ in range(SIZE)], "answers": answers, "rewards": rewards,
            "noise": noise}  # fmt: skip


def model(folder: Path) -> None:
    """A random Llama with a tokenizer of words, written by transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(sizes).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    made.save_pretrained(folder)


def padded(values: list[Any], width: int) -> Any:
    """Rows of numbers as a tensor, zeros on the right."""
    import torch

    out = torch.zeros(len(values), width)
    for row, numbers in enumerate(values):
        out[row, : len(numbers)] = torch.as_tensor(numbers)
    return out


def theirs(folder: Path, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Advantages, loss and gradients of TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    logging.disable_progress_bar()
    settings = dict(settings)
    with_old, with_sampler = settings.pop("old", True), settings.pop("use_vllm", False)
    rewards = given["rewards"]
    functions = [lambda completions, row=row, **_: row.tolist() for row in rewards]
    for number, function in enumerate(functions):
        function.__name__ = f"reward{number}"
    count = GROUPS * SIZE
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=functions,
        args=GRPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=count, num_generations=SIZE,
            max_completion_length=LIMIT, temperature=TEMPERATURE, reward_weights=list(WEIGHTS), report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": "w3"}] * count),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    width = max(map(len, given["answers"]))
    old, reference = padded(given["old"], width), padded(given["reference"], width)
    sampler = [row.tolist() for row in given["sampler"]]
    forward = trainer._get_per_token_logps_and_entropies

    def said(asked: Any, *_: Any, **__: Any) -> Any:
        return (reference if asked is trainer.ref_model else old), None, None

    def drawn(prompts: Any) -> Any:
        texts = ["w3"] * count
        return given["prompts"], given["answers"], None, texts, sampler if with_sampler else None, {}, None, None

    trainer._generate = drawn
    trainer._get_per_token_logps_and_entropies = said
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = with_sampler, with_sampler
    batch = trainer._generate_and_score_completions([{"prompt": "w3"} for _ in range(count)])
    trainer._get_per_token_logps_and_entropies = forward
    if with_old:
        batch["old_per_token_logps"] = old
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    slopes = {name: value.grad.numpy() for name, value in trainer.model.named_parameters()}
    return {"advantages": batch["advantages"].numpy(), "loss": loss.item(), "gradients": slopes}


class Ours:
    """Our side: the model is read and the batch laid out once."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        from gramjax.core import config as configs
        from gramjax.training import setup

        config = configs.defaults("grpo")
        config.model.path, config.model.compute_dtype = str(folder), "float32"
        self.network = setup.open_network(config)
        self.params = setup.load_for_use(self.network)
        self.folder, self.given = folder, given

    def logprobs(self) -> list[np.ndarray]:
        """Of every answer, under the policy."""
        from gramjax.generation import experience
        from gramjax.models import heads

        samples = self.samples(np.zeros(GROUPS * SIZE))
        batch, plan = self.layout().batch(samples, ())
        weights = self.network.model.pack(self.params)
        hidden = self.network.model.forward(weights, batch).hidden
        found, _ = heads.token_statistics(weights, hidden, batch["labels"], 1024, TEMPERATURE)
        return experience.unpack(np.asarray(found), samples, plan)

    def layout(self) -> Any:
        """Several answers share a row."""
        from gramjax.generation import experience

        return experience.Layout(32, 1, True, 0, LIMIT)

    def samples(self, advantages: np.ndarray) -> list[Any]:
        """With the log-probabilities that are known."""
        from gramjax.generation import experience

        out = []
        for i, (prompt, answer) in enumerate(zip(self.given["prompts"], self.given["answers"], strict=True)):
            tokens = np.asarray([*prompt, *answer], np.int32)
            sample = experience.Sample(i // SIZE, i // SIZE, i % SIZE, len(prompt), tokens, "", "stop", 0)
            sample.advantages = np.full(len(answer), advantages[i], np.float32)
            for name in ("old", "reference", "sampler"):
                if name in self.given:
                    setattr(sample, f"{name}_logprobs", self.given[name][i])
            out.append(sample)
        return out

    def measure(self, settings: dict[str, Any], with_old: bool) -> dict[str, Any]:
        """Advantages, loss and gradients."""
        import jax
        from safetensors.numpy import load_file

        from gramjax.checkpoint import huggingface
        from gramjax.core import advantages
        from gramjax.core.reinforcement import GrpoSection
        from gramjax.objectives import grpo

        config = GrpoSection(**settings, group_size=SIZE, advantage_epsilon=1e-4, temperature=TEMPERATURE)
        grpo.resolve(config, None)
        lengths = [len(answer) for answer in self.given["answers"]]
        groups = np.repeat(np.arange(GROUPS), SIZE)
        worths = advantages.estimate(self.given["rewards"], groups, lengths, config, WEIGHTS).values
        names = ["advantages", *(["old_logprobs"] if with_old else [])]
        names += ["reference_logprobs"] if config.beta else []
        names += ["sampler_logprobs"] if config.correction != "none" else []
        batch, _ = self.layout().batch(self.samples(worths), names)
        network = self.network.model

        def loss(params: Any) -> Any:
            (total, weight), _ = grpo.loss(network, network.pack(params), batch, config)
            return total / weight

        value, slope = jax.value_and_grad(loss)(self.params)
        with tempfile.TemporaryDirectory() as place:
            huggingface.save(Path(place) / "g", slope, network.config, dtype="float32")
            slopes = load_file(Path(place) / "g" / "model.safetensors")
        return {"advantages": worths, "loss": float(value), "gradients": slopes}


def apart(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Differences of two sides; every parameter has to be on both."""
    a, b = one["gradients"], two["gradients"]
    if set(a) != set(b):
        raise SystemExit(f"benchmark: parameters of one side only: {sorted(set(a) ^ set(b))}")
    largest = max(float(np.abs(value).max()) for value in b.values())
    return {
        "trl": two["loss"],
        "gramjax": one["loss"],
        "loss": abs(one["loss"] - two["loss"]),
        "advantages": float(np.abs(one["advantages"] - two["advantages"]).max()),
        "gradient": max(float(np.abs(a[name] - b[name]).max()) for name in a) / largest,
        "largest_gradient": largest,
    }


def main() -> None:
    """Every case, as a table and as JSON."""
    os.environ.update({"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    given = parser.parse_args()
    here = measure.machine()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model(folder)
        batch = fixed()
        ours = Ours(folder, batch)
        policy = ours.logprobs()
        for row, name in enumerate(("old", "reference", "sampler")):
            pairs = zip(policy, batch["noise"], strict=True)
            batch[name] = [own + noise[row] for own, noise in pairs]
        for name, (their_settings, our_settings) in CASES.items():
            if given.only not in name:
                continue
            one = ours.measure(our_settings, their_settings.get("old", True))
            found[name] = apart(one, theirs(folder, batch, their_settings))
            found[name] |= {"settings_trl": their_settings, "settings_gramjax": our_settings}
            if name in AWAY:
                found[name]["why"] = AWAY[name]
            print(f"{name:31}", *(f"{key} {found[name][key]:.1e}" for key in COMPARED), file=sys.stderr)
    worst = {
        key: max((case[key] for case in found.values() if "why" not in case), default=0.0)
        for key in COMPARED
    }
    command = " ".join(["python", "benchmarks/parity_trl.py", *sys.argv[1:]])
    measure.write(given.json, {"command": command, **here, "largest_differences": worst, "cases": found})
    if max(worst.values()) > 1e-5:
        raise SystemExit(f"benchmark: the largest differences are {worst}")


if __name__ == "__main__":
    main()
