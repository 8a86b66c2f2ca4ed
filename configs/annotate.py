"""Let a model write columns for rows: judgements by vote (judge_pairs) or proofs of a label (prove_preferences).

gramjax annotate --config=annotate:judge_pairs --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR
gramjax annotate --config=annotate:prove_preferences --config.model.path=PROVER --config.data.path=FILE --workdir=DIR

Also: rank_responses (lists of responses, best first) and reward_against_reference (reward against a greedy answer).
Writes DIR/rows.jsonl in the order of the input, DIR/refused.jsonl (id and reason of rows that did not come out) and
DIR/summary.json. The same command continues what was interrupted.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config(annotator: str = "judge_pairs") -> ConfigDict:
    config = configs.for_rows("annotate", ("model", "tokenizer", "data", "mesh", "generation"))
    return configs.with_plugin(config, "annotator", "annotators", annotator)
