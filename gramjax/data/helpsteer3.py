"""HelpSteer3's preference records (CC-BY-4.0): from the annotators' scores and texts to a label and a rationale.

Fields: `context` (messages), `response1`, `response2`, `overall_preference` (-3 to 3) and `individual_preference`, a
list of `score`, `reasoning`, `feedback1`, `feedback2`. A negative score prefers Response 1; `sign_agreement` checks
that on the data themselves.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gramjax.core.errors import DataError
from gramjax.data.rationales import rationale, render_rationale
from gramjax.data.rows import Drop
from gramjax.data.sides import claimed, lettered

SIGN_OF_FIRST = -1
"""The sign of a score that prefers Response 1."""

NO_ANNOTATION = "no annotation agrees with the overall preference"
TEXTS = ("feedback1", "feedback2", "reasoning")

Record = Mapping[str, Any]


def score_of(value: Any, where: str, field: str) -> int:
    """A score as a whole number. Raises DataError for anything that is none from -3 to 3."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(-3, 4):
        raise DataError(f"{where}: '{field}' is {value!r}; a whole number from -3 to 3 was expected")
    return int(value)


def label(score: int) -> str:
    """The better side, A (Response 1) or B, of a score other than 0."""
    return "A" if score * SIGN_OF_FIRST > 0 else "B"


def _annotations(record: Record, where: str) -> list[tuple[int, Record]]:
    found = record.get("individual_preference") or []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise DataError(f"{where}: 'individual_preference' is no list of annotations")
    return [(score_of(one.get("score"), where, "individual_preference score"), one) for one in found]


def annotation(record: Record, where: str = "record") -> Record:
    """The annotation whose score has the sign of the overall one and is nearest to it (the first of equals).

    Raises Drop where none has the sign, DataError for scores that are none.
    """
    overall = score_of(record["overall_preference"], where, "overall_preference")
    agreeing = [(abs(score - overall), one) for score, one in _annotations(record, where) if score * overall > 0]
    if not agreeing:
        raise Drop(NO_ANNOTATION)
    return min(agreeing, key=lambda pair: pair[0])[1]


def rationale_column(record: Record, where: str = "record") -> dict[str, str]:
    """`{"rationale": text}`: an annotator's feedback on both responses and reasoning, `Response 1` as `Response A`.

    The conclusion and the answer come from the sign of the overall preference. Raises Drop for a record without a
    fitting annotation, or whose texts are empty or hold marks of the format.
    """
    one = annotation(record, where)
    if not all(isinstance(one.get(name), str) for name in TEXTS):
        raise DataError(f"{where}: an annotation needs the texts {', '.join(TEXTS)}; it has {', '.join(map(str, one))}")
    first, second, reasoning = (lettered(one[name]) for name in TEXTS)
    verdict = label(score_of(record["overall_preference"], where, "overall_preference"))
    return {"rationale": render_rationale(rationale(first, second, reasoning, verdict))}


@dataclasses.dataclass(frozen=True)
class SignAgreement:
    """How often the annotators' reasoning names the response that their score prefers."""

    named: int
    """Annotations with a score other than 0 whose reasoning calls exactly one response better ..."""
    agreeing: int
    """... and those of them where it is the one that the score prefers."""
    annotations: int
    """All annotations with a score other than 0."""

    @property
    def share(self) -> float:
        """Share that agrees among those that name one; one half says nothing, near 0 means the sign is wrong."""
        return self.agreeing / self.named if self.named else 0.5


def sign_agreement(records: Iterable[Record]) -> SignAgreement:
    """Check `SIGN_OF_FIRST` on records: only texts and signs are looked at, never lengths or responses."""
    named = agreeing = annotations = 0
    for index, record in enumerate(records):
        for score, one in _annotations(record, f"record {index + 1}"):
            if score == 0:
                continue
            annotations += 1
            side = claimed(lettered(str(one.get("reasoning") or "")))
            named += side is not None
            agreeing += side == label(score)
    return SignAgreement(named, agreeing, annotations)
