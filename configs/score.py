"""Score the rows of a file with a reward model: rows in, rows with scores out.

gramjax score --config=score --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR

Rows may be prompt and completion (or messages), preference pairs, or a prompt with responses. A judge of pairs scores
an answer against --config.score.reference (a column of the rows or a file). Writes DIR/rows.jsonl in the order of the
input, DIR/refused.jsonl (id and reason of rows that have no score) and DIR/summary.json. The same command continues
what was interrupted. How rows are rendered comes from the run that trained the model unless it is set here.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    return configs.for_rows("score", ("model", "tokenizer", "data", "mesh", "reference", "score"))
