"""Answers to mathematical questions: where they stand in a text, and which of them are the same."""

import gzip
import json

import pytest

from gramjax.data import math_answers as answers

EXTRACTED = {
    "number": [
        ("The answer is 12 apples.", "12"),
        ("He has $1,234.50 left", "1,234.50"),
        ("In lakhs that is 1,00,000.", "1,00,000"),
        ("the numbers 3,4 and 12,34", "34"),
        ("#### 1,200\n", "1,200"),
        ("so 5. #### 7\n#### 8\n\nQuestion: 9 birds", "8"),
        ("#### -5", "-5"),
        ("it falls to −3.5.", "−3.5"),
        ("a share of 3/4 of", "3/4"),
        ("5-3 = 2", "2"),
        ("from x-5", "5"),
        ("12kg", "12"),
        (".5 of it", ".5"),
        ("about 5e3", "5e3"),
        ("in 2019, she had 12.", "12"),
        ("答案是42。", "42"),
        ("所以一共是１２个", "12"),
        ("উত্তর ৪২।", "42"),
        ("उत्तर -१२ है", "-12"),
        ("soit 1\u202f250 euros", "1,250"),
        ("\\boxed{42} apples in 3 days", "42"),
        ("\\boxed{\\frac{3}{4}}", "\\frac{3}{4}"),
        ("\\boxed{\\$18\\text{ a day}}", "\\$18\\text{ a day}"),
        ("no number, only x12", None),
    ],
    "boxed": [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} and unfinished \\boxed{2", "1"),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\fbox{3}", "3"),
        ("\\boxed 5 .", "5"),
        ("\\boxed {7}", "7"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{\\left\\{1,2\\right\\}}", "\\left\\{1,2\\right\\}"),
        ("\\boxed{[0,\\infty)}", "[0,\\infty)"),
        ("42", None),
    ],
    "choice": [
        ("The answer is (B).", "B"),
        ("answer: c", "C"),
        ("Answer is : $\\boxed{\\text{(D)}}$", "D"),
        ("\\boxed{(E) 12}", "E"),
        ("The correct option is $\\textbf{(B)}$", "B"),
        ("**A**", "A"),
        ("A. because", "A"),
        ("I think that B is right", "B"),
        ("The answer is a number, so (C)", "C"),
        ("After checking A and B, it is D.", "D"),
        ("A man walked", None),
        ("It's I who knows", None),
    ],
}

EQUAL = r"""
1,200|1200
1{,}000|1000
10,\!080|10080
\$18|18
18 dollars|18
18.00|18.
+5|5
.5|0.5
−3|-3
007|7
५|5
\frac{1}{2}|0.5
\dfrac12|\tfrac{1}{2}
\frac12|1/2
\frac 38|\frac{3}{8}
-\frac{1}{2}|\frac{-1}{2}
\frac{1}{-2}|-1/2
\frac{2}{4}|\frac{1}{2}
1\frac{1}{2}|\frac{3}{2}
1\frac12|1.5
0.333333|\frac13
50\%|50%
50\%|\frac12
5 percent|5\%
5\%|5
3\times 10^{4}|30000
6.02 \cdot 10^3|6020
x^{2}+1|x^2 + 1
\sqrt2|\sqrt{2}
\frac{\sqrt{3}}2|\frac{\sqrt3}{2}
\sqrt[3]{2}|\sqrt[ 3 ]{2}
\frac\pi2|\frac{\pi}{2}
\cos x|\cos{x}
90^\circ|90°
45 \text{ degrees}|45
5\,\text{cm}^2|5
7\text{ }|7
12 \mbox{ inches}|12
x = 5|5
f(x) = 2x|2x
x \in [2,3]|[2,3]
\text{Evelyn}|Evelyn
\text{EVEN}|even
\textbf{(C)}|(C)
\left( 3, \frac{\pi}{2} \right)|(3,\dfrac{\pi}{2})
\left(\frac12,3\right)|(0.5, 3)
(-\infty, 2]|(-\infty,2]
((1,2),(3,4))|((1, 2), (3, 4.0))
\{1, 2\}|\{2,1\}
1, 2|2,1
1 \text{ or } 2|1, 2
-1 and 3|3,-1
3 \le x|3\leq x
11_{2}|11_2
\begin{pmatrix} 1 \\ 2 \end{pmatrix}|\begin{pmatrix}1\\2\end{pmatrix}
"""

UNEQUAL = r"""
1|2
12|1.2
1,200|1.2
1.5|1,5
-5|5
0.33|\frac13
0.3|\frac13
\frac{1}{2}|2
\frac{1}{2}|\frac{1}{3}
\frac{12}{3}|\frac{1}{23}
3\frac{1}{2}|\frac{3}{2}
50\%|5
1\%|0.1
(1,2)|(2,1)
(1,2)|[1,2]
[1,2)|(1,2]
(1,2)|1,2
\{1,2\}|(1,2)
\{1,2\}|\{1,3\}
\{1,1,2\}|\{1,2,2\}
1,2|1,2,3
1,2|12
(1,234)|(1234)
x^2|2x
2^{10}|2^{1}0
10^{2}|102
x_1|x1
\sqrt{2}|2
\pi|3.14
A|B
a|A
Evelyn|Evan
\infty|-\infty
5 \text{ cm}|6
1000001|1000000
1000000.5|1000000
\begin{pmatrix} 1 \\ 2 \end{pmatrix}|\begin{pmatrix} 2 \\ 1 \end{pmatrix}
"""


def pairs(table):
    return [tuple(line.split("|")) for line in table.strip().splitlines()]


@pytest.mark.parametrize("kind", EXTRACTED)
@pytest.mark.smoke
def test_where_answers_stand(kind):
    found = {text: answers.extract(text, kind)[0] for text, _ in EXTRACTED[kind]}
    assert found == dict(EXTRACTED[kind])


@pytest.mark.smoke
def test_equal_answers():
    wrong = [pair for pair in pairs(EQUAL) if not (answers.equal(*pair) and answers.equal(*pair[::-1]))]
    assert wrong == []


@pytest.mark.smoke
def test_unequal_answers():
    wrong = [pair for pair in pairs(UNEQUAL) if answers.equal(*pair) or answers.equal(*pair[::-1])]
    assert wrong == []


def test_verdicts_have_reasons():
    grade = answers.grade
    assert grade("so \\boxed{5}", "5") == answers.Verdict(True, "ok")
    assert grade("so \\boxed{6}", "5") == answers.Verdict(False, "mismatch")
    assert grade("so 5", "5") == answers.Verdict(False, "no_box")
    assert grade("so", "5", "number") == answers.Verdict(False, "parse_fail")
    assert grade("\\boxed{" + "1" * 2001 + "}", "5") == answers.Verdict(False, "parse_fail")
    for nothing in (None, "", [], ["", " "]):
        assert grade("\\boxed{5}", nothing) == answers.Verdict(None, "no_gold")
    assert {grade("\\boxed{5}", gold).correct for gold in (["4", "5"], ["5", "4"], ["5"])} == {True}


def test_what_counts_is_behind_the_first_end_of_thinking():
    think = "<think>\\boxed{4}</think> \\boxed{5}"
    assert answers.grade(think, "5", after_think=True).correct
    assert answers.grade("\\boxed{5}", "5", after_think=True) == answers.Verdict(False, "no_think_end")
    assert not answers.grade("\\boxed{5}</think> no box", "5", after_think=True).correct
    assert answers.grade("</think> \\boxed{4} </think> \\boxed{5}", "5", after_think=True).correct


def test_right_answers_may_come_with_their_solution():
    assert answers.grade("it is 72", "48/2 = 24\n48+24 = 72\n#### 72", "number").correct
    assert answers.grade("\\boxed{0.5}", "We find $\\boxed{\\frac12}$.").correct
    assert answers.grade("I say B", "(B) 5", "choice").correct
    assert answers.grade("so 1,00,000 rupees", "100000", "number").correct
    assert answers.grade(" #### 72\n", "#### 72", "exact").correct
    assert not answers.grade("72", "#### 72", "exact").correct


READ_TWICE = """
so -1,234.5 left|1234.5|-1234.5
none|0|
|0|
3 and 4.|4|4
The answer is 18.|18|18
#### 1,450|1450|1450
12 apples, 3 pears|3|3
3/4|4|3/4
$2.50|2.5|2.5
১৮|18|18
คำตอบคือ ๒๕|25|25
-১২ বা -১,২৩৪|1234|-1234
"""
"""Text, the number as MathOctopus' evaluation finds it, and as the strict reading does (empty: none); S-9."""


def test_numbers_as_mathoctopus_counts_them():
    for line in READ_TWICE.strip("\n").splitlines():
        text, compatible, strict = line.split("|")
        assert answers.compatible_number(text) == float(compatible), text
        found = answers.extract(text, "number")[0]
        assert (found or "") == strict or answers.equal(found or "?", strict, "number"), (text, found)


DEGENERATE = [
    "\\boxed{" * 4000, "\\boxed{" + "(" * 900 + "1" + ")" * 900 + "}", "\\boxed{\\text{" + " " * 1900 + "x}1",
    "\\boxed{" + "\\text{a " * 200 + "}" * 201, "\\boxed{" + "\\frac{" * 250 + "}" * 251, "\\boxed{" + "9" * 1990 + "}",
    "1" * 20000, "{" * 20000, "answer " * 4000, "\\boxed{" + "12," * 600 + "12}", "\\boxed{\\frac{1}{0}}",
    "\\boxed{1/0}", "\\boxed{}", "\\boxed{1e999}", "²³", "\\boxed{½}", "####", "\\",
]  # fmt: skip


def test_nothing_that_a_model_writes_raises():
    golds = ["(1,2)", "((((2))))", "\\text{a}", ",".join(["13"] * 600), "1/0"]
    for text in DEGENERATE:
        for kind in answers.KINDS:
            assert not answers.grade(text, golds[:4], kind).correct
            answers.grade(text, golds, kind)


def records(folder, name):
    with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_published_answers_equal_themselves_however_they_are_written(data_dir):
    """E-10: at least 99.5 % of the right answers of MATH and GSM8K."""
    rows = [row for name in ("math500_dev", "train") for row in records(data_dir, f"math/{name}.jsonl.gz")]
    golds = [row["answer"] for row in rows if row["answer"]]
    for spelled in (
        lambda gold: gold,
        lambda gold: f" {gold} .",
        lambda gold: gold.replace("\\frac", "\\dfrac").replace("(", "\\left(").replace(")", "\\right)"),
        lambda gold: gold if any(word in gold for word in ("text", "mbox", "\\ ")) else gold.replace(" ", ""),
    ):
        right = [answers.grade(f"It is $\\boxed{{{spelled(gold)}}}$.", gold).correct for gold in golds]
        assert sum(right) >= 0.995 * len(right) and len(right) > 7000
    worked = [row["answer"] for name in ("train", "test_dev") for row in records(data_dir, f"gsm8k/{name}.jsonl.gz")]
    for text in (lambda gold: gold, lambda gold: f"\\boxed{{{gold.rpartition('####')[2].strip()}}} is it"):
        right = [answers.grade(text(gold), gold, "number").correct for gold in worked]
        assert sum(right) >= 0.995 * len(right) and len(right) > 8000


def test_different_published_answers_are_told_apart(data_dir):
    """Neighbours in the list of MATH are hardly ever the same answer; where they are, their texts say so."""
    golds = [row["answer"] for row in records(data_dir, "math/train.jsonl.gz") if row["answer"]]
    merged = {
        (one, two) for one, two in zip(golds, golds[1:])
        if answers.normalised(one) != answers.normalised(two) and answers.equal(one, two)
    }  # fmt: skip
    assert all(answers.value_of(answers.normalised(one)) is not None for one, _ in merged) and len(merged) < 10
