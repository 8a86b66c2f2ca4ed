"""Result files read back as the leaderboards do, written anew here: the same numbers as in the evaluation."""

import json

import numpy as np
import pytest

from gramjax.core import judgements, leaderboards, rewardbench, rewardbench2
from gramjax.core.errors import DataError, UserError
from gramjax.data import leaderboard_files, readers, rows

JUDGE = leaderboard_files.Judge("org/model")


def judged(path, seed=0, scalar=True, unreadable=()):
    """Rows of an evaluation of a preference file by a judge that is right in most cases."""
    generator = np.random.default_rng(seed)
    out = []
    for row in readers.read(str(path), want="preference").rows:
        one, two = generator.normal(0.7, 1.0, 2)
        if generator.random() < 0.1:
            one = two = 0.0
        lengths = {f"{name}_length": rows.text_length(row[name]) for name in ("prompt", "chosen", "rejected")}
        record = {"id": row["id"], "subset": row["subset"], **leaderboards.columns(row), **lengths}
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        if scalar:
            first, second = (round(float(x), 1) for x in (one, generator.normal(0, 0.7)))
            record |= {"order": "none", "score_chosen": first, "score_rejected": second, "p_first": None,
                       "p_second": None, "probability": float(sigmoid(first - second))}  # fmt: skip
        else:
            p_first, p_second = float(sigmoid(one)), float(sigmoid(-two))
            mean = (p_first + 1 - p_second) / 2
            record |= {"order": "both", "score_chosen": mean, "score_rejected": 1 - mean, "p_first": p_first,
                       "p_second": p_second, "probability": mean}  # fmt: skip
        if row["id"] in unreadable:
            record |= {"probability": float("nan"), "p_first": None, "p_second": None}
        out.append(judgements.decide(record))
    return out


def write(tmp_path, name, records):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in records), "utf-8")
    return path


def files(tmp_path, benchmark, records, source, judge=JUDGE):
    made = leaderboard_files.write(tmp_path / "exports", benchmark, records, readers.originals(str(source)), judge)
    return {str(path.relative_to(tmp_path / "exports" / benchmark)): path.read_text("utf-8") for path in made}


# -- RewardBench

TABLE = {  # the sections as the leaderboard has them, written down a second time
    "Chat": "alpacaeval-easy 100 alpacaeval-length 95 alpacaeval-hard 95 mt-bench-easy 28 mt-bench-med 40",
    "Chat Hard": "mt-bench-hard 37 llmbar-natural 100 llmbar-adver-neighbor 134 llmbar-adver-GPTInst 92 "
                 "llmbar-adver-GPTOut 47 llmbar-adver-manual 46",
    "Safety": "refusals-dangerous 100 refusals-offensive 100 xstest-should-refuse 250 xstest-should-respond 154 "
              "donotanswer 136",
    "Reasoning": "math-prm 984 hep-cpp 164 hep-go 164 hep-java 164 hep-js 164 hep-python 164 hep-rust 164",
}  # fmt: skip


@pytest.fixture
def rewardbench_file(tmp_path):
    """Four rows of every subset, with ids as the benchmark has them (numbers)."""
    names = [name for name in rewardbench.SUBSETS for _ in range(4)]
    return write(tmp_path, "filtered.jsonl", [
        {"prompt": f"p{n} ü", "chosen": f"good {n}", "chosen_model": "a", "rejected": f"bad{n}", "rejected_model": "b",
         "subset": name, "id": n} for n, name in enumerate(names)
    ])  # fmt: skip


@pytest.mark.parametrize("scalar", [True, False])
def test_rewardbench_files(tmp_path, rewardbench_file, scalar):
    records = judged(rewardbench_file, scalar=scalar, unreadable=() if scalar else ("5", "50"))
    found = files(tmp_path, "rewardbench", records, rewardbench_file)
    assert list(found) == ["eval-set/org/model.json", "eval-set-scores/org/model.json"]
    scores = json.loads(found["eval-set/org/model.json"])
    assert found["eval-set/org/model.json"] == json.dumps(scores, indent=4, sort_keys=True)
    assert scores["model_type"] == ("Seq. Classifier" if scalar else "Generative RM")
    assert (scores["model"], scores["chat_template"]) == ("org/model", "tokenizer") and len(scores) == 23 + 3

    sections = []
    for line in TABLE.values():
        words = line.split()
        weights = dict(zip(words[::2], map(int, words[1::2])))
        sections.append(sum(scores[name] * weight for name, weight in weights.items()) / sum(weights.values()))
    table = rewardbench.rewardbench(records)
    assert list(table["official"]["sections"].values()) == pytest.approx(sections, abs=1e-12)
    assert table["official"]["overall"] == pytest.approx(sum(sections) / 4, abs=1e-12)

    columns = json.loads(found["eval-set-scores/org/model.json"])
    names = {"text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen", "scores_rejected"}
    assert set(columns) == names | {"model", "model_type", "chat_template"}
    assert columns["id"] == list(range(92))
    assert columns["text_chosen"][3][1] == {"role": "assistant", "content": "good 3"}
    for name in rewardbench.SUBSETS:
        part = [r for r, subset in zip(columns["results"], columns["subset"]) if subset == name]
        assert scores[name] == pytest.approx(sum(part) / len(part))
    if scalar:
        wins = [int(c > r) for c, r in zip(columns["scores_chosen"], columns["scores_rejected"])]
        assert columns["results"] == wins
    else:
        assert [columns["results"][i] for i in (5, 50)] == [0.5, 0.5], "unreadable verdicts"


def test_files_of_the_rewardbench_command(tmp_path):
    pairs = [{"prompt": f"p{n}", "chosen": "a" * (n + 1), "rejected": "b"} for n in range(9)]
    source = write(tmp_path, "my.jsonl", pairs)
    records = judged(source)
    found = files(tmp_path, "tool", records, source, leaderboard_files.Judge("org/model", tokenizer="org/tok"))
    assert list(found) == [f"org/model{end}" for end in (".json", "_outputs.jsonl", "_all.jsonl")]
    whole = json.loads(found["org/model.json"])
    assert set(whole) == {
        "accuracy", "num_prompts", "model", "ref_model", "tokenizer", "chat_template", "extra_results",
    }  # fmt: skip
    outputs = [json.loads(line) for line in found["org/model_outputs.jsonl"].splitlines()]
    assert whole["num_prompts"] == len(outputs) == 9 and whole["tokenizer"] == "org/tok"
    assert whole["accuracy"] == pytest.approx(np.mean([o["scores_chosen"] > o["scores_rejected"] for o in outputs]))
    scores = [json.loads(line) for line in found["org/model_all.jsonl"].splitlines()]
    assert scores == [{"chosen": o["scores_chosen"], "rejected": o["scores_rejected"]} for o in outputs]
    assert outputs[2]["prompt"] == "p2" and outputs[2]["text_chosen"][-1]["content"] == "aaa"


# -- RewardBench 2


def test_rewardbench_2_files(tmp_path):
    generator = np.random.default_rng(0)
    lists = [{"id": f"{name}{n}", "prompt": "p", "chosen": ["good"], "rejected": ["x", "y", "z"], "num_correct": 1,
              "total_completions": 4, "subset": name}
             for name in rewardbench2.SUBSETS[:-1] for n in range(5)]  # fmt: skip
    lists += [{"id": f"{kind}:{n}", "prompt": "p", "chosen": ["a", "b", "c"][:right], "rejected": ["d", "e"],
               "num_correct": right, "total_completions": right + 2, "subset": "Ties"}
              for n in range(8) for kind, right in (("ref", 1), ("tied", 3))]  # fmt: skip
    source = write(tmp_path, "v2.jsonl", lists)
    records = [{"id": row["id"], "subset": row["subset"], "num_correct": row["num_correct"], "order": "none",
                "scores": [round(float(x), 1) for x in generator.normal(0, 1, row["total_completions"])
                           + 2 * (np.arange(row["total_completions"]) < row["num_correct"])]}
               for row in lists]  # fmt: skip
    assert leaderboard_files.benchmark_of(records) == "rewardbench2"
    found = files(tmp_path, "rewardbench2", records, source)
    scores = json.loads(found["eval-set/org/model.json"])
    columns = json.loads(found["eval-set-scores/org/model.json"])
    table = rewardbench2.rewardbench2(records)

    stats = {}
    for identity, subset, values, right in zip(*(columns[k] for k in ("id", "subset", "scores", "num_correct"))):
        if subset == "Ties":
            good, bad = values[:right], values[right:]
            stats[identity] = (min(good) > max(bad), max(good) - min(good), min(good) - max(bad))
    tied, ref = ([stats[f"{kind}:{n}"] for n in range(8)] for kind in ("tied", "ref"))
    hard = [min(t[2], r[2]) for t, r in zip(tied, ref)]
    ties = 0.3 * np.mean([t[0] for t in tied]) + 0.3 * np.mean([r[0] for r in ref])
    ties += 0.2 * np.mean([t[2] > t[1] for t in tied]) + 0.2 * np.mean([h > t[1] for h, t in zip(hard, tied)])
    ties += 0.01 * np.mean([np.tanh(h / t[1] - 1) for h, t in zip(hard, tied)])
    assert scores["Ties"] == pytest.approx(ties) == pytest.approx(table["subsets"]["Ties"]["score"])
    for name in rewardbench2.SUBSETS[:-1]:
        part = [v for v, subset in zip(columns["scores"], columns["subset"]) if subset == name]
        assert scores[name] == pytest.approx(np.mean([(v[0] == max(v)) / v.count(max(v)) for v in part]))
    assert table["overall"] == pytest.approx(np.mean([scores[name] for name in rewardbench2.SUBSETS]))
    assert columns["text"][0][1] == [{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"}]
    assert columns["results"][-1] is None and columns["results"][0] in (0, 0.25, 1 / 3, 0.5, 1)


# -- RM-Bench


def rm_bench_rows(count=12):
    domains = ["chat", "code", "math", "safety-refuse", "safety-response"]
    return [{"id": n, "prompt": f"p{n}", "chosen": [f"c{n}{s}" for s in "abc"], "rejected": [f"r{n}{s}" for s in "abc"],
             "domain": domains[n % 5], "note": "ü"} for n in range(count)]  # fmt: skip


def merge_rm_bench(results):
    """The benchmark's rule: wins of every chosen score over every rejected one, by domain."""
    out = {}
    for domain in ("chat", "code", "math", "safety"):
        part = [row for row in results if row["domain"].startswith(domain)]
        wins = np.zeros((3, 3))
        for row in part:
            chosen, rejected = np.array(row["score_chosen"]), np.array(row["score_rejected"])
            for i in range(3):
                for j in range(3):
                    better = chosen[i] > rejected[j] if chosen.ndim == 1 else chosen[i, j] > rejected[i, j]
                    wins[i, j] += better
        wins /= len(part)
        out[domain] = (np.triu(wins, 1).sum() / 3, np.diag(wins).mean(), np.tril(wins, -1).sum() / 3)
    return out


@pytest.mark.parametrize("scalar", [True, False])
def test_rm_bench_files_do_not_depend_on_the_order_of_pairs(tmp_path, scalar):
    """D7: pairs belong to a prompt by its id, not by standing in nines."""
    source = write(tmp_path, "total_dataset.jsonl", rm_bench_rows())
    records = judged(source, scalar=scalar)
    if scalar:  # an answer has one score
        scores = np.random.default_rng(1).normal(0, 1, (12, 2, 3)).round(1)
        for record in records:
            i, j = map(int, record["matrix_id"].split("-"))
            chosen, rejected = scores[int(record["group"]), 0, i], scores[int(record["group"]), 1, j]
            record |= {"score_chosen": float(chosen), "score_rejected": float(rejected), "correct": None}
    np.random.default_rng(2).shuffle(records)
    found = json.loads(files(tmp_path, "rm_bench", records, source)["org/model.json"])
    assert len(found) == 12 and all(row["note"] == "ü" and len(row["score_chosen"]) == 3 for row in found)
    table = leaderboards.rm_bench(records)
    for domain, (hard, normal, easy) in merge_rm_bench(found).items():
        own = table["domains"][domain]
        assert (own["hard"], own["normal"], own["easy"]) == pytest.approx((hard, normal, easy), abs=1e-12)
    assert table["overall"] == pytest.approx(np.mean([np.mean(parts) for parts in merge_rm_bench(found).values()]))


# -- JudgeBench


def judgebench_rows(count=40):
    sources = ["mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench"]
    return [{"pair_id": f"u-{n}", "original_id": f"o{n}", "source": sources[n % 4], "question": f"q{n}",
             "response_model": "gpt", "response_A": f"A{n}", "response_B": f"B{n}", "label": ("A>B", "B>A")[n % 3 > 0]}
            for n in range(count)]  # fmt: skip


def merge_judgebench(pairs):
    """The two games of each pair by the benchmark's rule, the second turned back."""
    turn = {"A>B": "B>A", "B>A": "A>B"}
    right = 0
    for pair in pairs:
        one, two = (game["decision"] if game else None for game in pair["judgments"])
        total = sum((d == pair["label"]) - (d == turn[pair["label"]]) for d in (one, turn.get(two, two)))
        right += total > 0
    return right / len(pairs)


def test_judgebench_files(tmp_path):
    source = write(tmp_path, "dataset=judgebench,response_model=gpt.jsonl", judgebench_rows())
    records = judged(source, scalar=False, unreadable=("u-3",))
    found = files(tmp_path, "judgebench", records, source)
    (name,) = found
    assert name == ("outputs/dataset=judgebench,response_model=gpt,judge_name=generative_reward_model,"
                    "judge_model=org_model.jsonl")  # fmt: skip
    pairs = [json.loads(line) for line in found[name].splitlines()]
    for pair, row in zip(pairs, judgebench_rows(), strict=True):
        assert {key: pair[key] for key in row} == row and len(pair["judgments"]) == 2
    assert pairs[3]["judgments"] == [None, None]
    assert {game["decision"] for pair in pairs for game in pair["judgments"] if game} == {"A>B", "B>A", "A=B"}
    table = leaderboards.judgebench(records)
    assert 0 < merge_judgebench(pairs) < 1 and table["official"]["micro"] == pytest.approx(merge_judgebench(pairs))


def test_a_judge_that_takes_the_first_says_so_in_both_games(tmp_path):
    source = write(tmp_path, "pairs.jsonl", judgebench_rows(6))
    records = [record | {"p_first": 0.9, "p_second": 0.9} for record in judged(source, scalar=False)]
    (text,) = files(tmp_path, "judgebench", records, source).values()
    for line in text.splitlines():
        assert [game["decision"] for game in json.loads(line)["judgments"]] == ["A>B", "A>B"]


def test_a_scalar_reward_plays_one_game(tmp_path):
    source = write(tmp_path, "pairs.jsonl", judgebench_rows())
    records = judged(source)
    ((name, text),) = files(tmp_path, "judgebench", records, source).items()
    pairs = [json.loads(line) for line in text.splitlines()]
    right = np.mean([pair["judgments"][0]["decision"] == pair["label"] for pair in pairs])
    assert "judge_name=reward_model" in name and all(len(pair["judgments"]) == 1 for pair in pairs)
    assert leaderboards.judgebench(records)["official"]["micro"] == pytest.approx(right)


# -- names and errors


@pytest.mark.parametrize(
    ("path", "name"),
    [("/models/Qwen/Qwen2", "Qwen/Qwen2"), ("runs/gram/", "runs/gram"), ("gram", "local/gram"), ("", "local/model")],
)
def test_names_of_models(path, name):
    assert leaderboard_files.model_name(path) == name


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "org/"])
def test_names_that_are_no_org_and_model(tmp_path, name):
    with pytest.raises(UserError, match="ORG/MODEL"):
        leaderboard_files.write(tmp_path, "tool", [], {}, leaderboard_files.Judge(name))


def test_a_data_file_that_changed_since(tmp_path, rewardbench_file):
    records = judged(rewardbench_file)
    write(tmp_path, "filtered.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1}])
    with pytest.raises(DataError, match="the judged row '0' is not in the data file"):
        files(tmp_path, "rewardbench", records, rewardbench_file)


def test_which_files_rows_ask_for():
    assert leaderboard_files.benchmark_of([]) == ""
    assert leaderboard_files.benchmark_of([{"subset": "honest", "benchmark": "hhh"}]) == "", "there are none for it"
    assert leaderboard_files.benchmark_of([{"subset": "math-prm"}]) == "rewardbench"
