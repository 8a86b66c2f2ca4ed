"""Calls with deadlines: nothing hangs, nothing is lost, and a failure costs itself only."""

import subprocess
import sys
import threading
from pathlib import Path

import late_worker
import pytest

pytest.importorskip("pebble", reason="needs the extra math")

from gramjax.core import deadlines, runtime  # noqa: E402
from gramjax.core.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def pool():
    made = deadlines.Pool(late_worker.act, 2, 1.0, "this test", prepare=late_worker.remember)
    yield made
    made.close()


def test_failures_are_values_and_order_is_kept(pool):
    words = ["echo", "sleep", "raise", "echo", "die", "busy", "own timeout", "echo"]
    calls = list(zip(words, [1, 30, 7, 2, 0, 0, 0, 3], strict=True))
    found = pool.call(calls)
    assert [found[i] for i in (0, 3, 7)] == [1, 2, 3]
    assert found[1].reason == found[5].reason == deadlines.TIMEOUT
    assert found[2] == deadlines.Failed(deadlines.ERROR, "ValueError: no 7")
    assert found[4].reason == deadlines.ERROR
    assert found[6] == deadlines.Failed(deadlines.ERROR, "TimeoutError: its own")
    assert pool.call([("echo", 4)]) == [4], "the processes that were killed have been replaced"


def test_processes_are_light_and_prepared(pool):
    (found,) = pool.call([("modules",)])
    assert found[0] == "prepared" and not {"jax", "numpy", "torch"} & set(found)


def test_equal_questions_are_asked_once(pool):
    first = pool.call([("pid", 0.5)] * 3)
    assert len(set(first)) == 1 and pool.call([("pid", 0.5)]) == first[:1]
    before = pool._ask.cache_info().misses
    pool.call([("echo", 77), ("echo", 77), ("echo", 78)])
    assert pool._ask.cache_info().misses == before + 2


def test_several_threads_may_ask(pool):
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: pool.call([("echo", 10 * n + i) for i in range(10)])}))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [10 * n + i for i in range(10)] for n in range(1, 5)}


def test_a_script_that_forgets_its_pool_ends_all_the_same(tmp_path):
    script = tmp_path / "forgets.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(late_worker.__file__).parent)!r})\n"
        "import late_worker\n"
        "from gramjax.core import deadlines\n"
        "if __name__ == '__main__':\n"
        "    pool = deadlines.Pool(late_worker.act, 1, 900.0, 'x')\n"
        "    print(pool.call([('echo', 5)]), flush=True)\n"
        "    pool._ask('sleep', 600)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "[5]\n" and done.returncode == 0, done.stderr


def test_without_pebble_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(runtime.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'this setting needs pebble: pip install "gramjax\[math\]"'):
        deadlines.Pool(late_worker.act, 1, 1.0, "this setting")
