"""A server whose model needs no JAX and waits at a gate: what happens to requests when it stops.

`python -m tests.serving.slow_server FOLDER`: a batch that is being read makes FOLDER/reading, and is answered when
FOLDER/open is there.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gramjax.data.branches import Tokens
from gramjax.scoring.reward_model import Question, Reward
from gramjax.serving import application, listening
from gramjax.serving.batching import Batcher
from gramjax.serving.service import Service


class Model:
    """The score of an answer is its length."""

    kind, programs = "score", 0
    renderer = SimpleNamespace(section=SimpleNamespace(max_length=1000))

    def ask_reward(self, item, markup=False):
        return Question((Tokens(np.zeros(len(item[1]), np.int32)),), num_tokens=len(item[1]))

    def reward(self, asked, values):
        return Reward(float(values[0]))

    def read(self, asked):
        folder = Path(sys.argv[1])
        (folder / "reading").touch()
        while not (folder / "open").exists():
            time.sleep(0.01)
        return [np.array([question.num_tokens], np.float64) for question in asked]


if __name__ == "__main__":
    model = Model()
    service = Service("slow", model=model, batcher=Batcher(model.read, 1, 0.0, 6))
    bound = listening.bind("127.0.0.1", 0)
    listening.run(application.make(service), bound, 30, lambda: print(f"serving at {listening.url(bound)}", flush=True))
