"""Ask problems with a right answer several times: GSM8K, MATH, MGSM, AIME, AQuA, or rows with `prompt` and `answer`.

gramjax evaluate --config=evaluate_math --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR \\
    --config.eval.repeats=16

Writes DIR/eval/math.json (avg@k, maj@k, pass@j with their errors, greedy flip rate, uncertain problems) and a line per
problem with all verdicts, answers and lengths beside it; `gramjax report DIR OTHER` says whether two runs differ by
more than noise. A tokenizer without a chat template needs --config.tokenizer.chat_template=none (or chatml).
A folder with a file per language (MGSM, MSVAMP) also gives a table by language and the means over languages; strict and
MathOctopus' reading of answers (`_compatible`) stand side by side. --config=evaluate_math:alpaca asks in the Alpaca
frame, as MetaMath, QAlign and SLAM do, with at most 600 tokens.
Long reasoning: --config.eval.sampling.max_tokens=32768 --config.eval.after_think=True. One evaluation of thirty
problems has a noise of about 6 points with 1 repeat, 3 with 4, 1.6 with 16 and 0.8 with 64.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.core.errors import UserError


def get_config(frame: str = "") -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.evals = ConfigDict({"math": configs.as_config(configs.plugins.load("evals", "math").Config())})
    if frame == "alpaca":
        config.tokenizer.chat_template = "alpaca"
        config.evals.math.template = ""
        config.evals.math.sampling.max_tokens = 600
    elif frame:
        raise UserError(f"no evaluate_math:{frame}; evaluate_math or evaluate_math:alpaca")
    return config
