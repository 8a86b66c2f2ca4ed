"""Rows to token ids: the one renderer for training, evaluation and serving.

A rendering is a list of segments: markup (what a template wrote, special tokens recognised) and content (what users
and data wrote, never special). Every segment is tokenised by itself, so a segment has the same ids whatever stands
around it, an exact loss mask, and two answers can change places without changing their tokens.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import template
from gramjax.data.formats import END, QUESTION, START
from gramjax.data.rows import Drop, Message, Text
from gramjax.data.segments import (
    NAMES,
    Pieces,
    Segment,
    check_mask,
    cut_answers,
    cut_left,
    flat,
    flatten,
    locate,
    merged,
    score,
    scored_by_spans,
    scored_ends,
    turns_of,
)
from gramjax.data.tokenizer import Tokenizer

JUDGE_PROMPT = (
    "You are an impartial judge. Below are a question from a user and the answers of two assistants, A and B. "
    "Decide which answer follows the question more closely and serves the user better. Weigh how helpful, relevant, "
    "accurate, deep, creative and detailed each answer is. Do not let the order of the answers, their length or the "
    "names of the assistants influence you. Reply with one letter only: A if the answer of assistant A is better, "
    "B if the answer of assistant B is better."
)
"""The package's own wording of the judge's instruction (`config.data.judge_prompt` replaces it)."""

POLICIES = ("drop", "truncate_prompt_left", "shorten_responses", "error")


@dataclasses.dataclass
class Example:
    """One rendering of a row: one sequence, two (chosen, rejected), or a list of answers (an empty one: no answer)."""

    tokens: tuple[np.ndarray, ...]
    """int32, one array per sequence."""
    loss_mask: tuple[np.ndarray, ...]
    """float32, as long as the tokens: the weight of predicting token i (so `[0]` never counts)."""
    fields: dict[str, float | int] = dataclasses.field(default_factory=dict)
    """Scalars of the example, such as `verdict`."""
    per_token: dict[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)
    """Numbers beside the tokens of each sequence, float32, such as the log-probabilities that a sampler found."""


def example(*sequences: tuple[Sequence[int], Sequence[float]], **fields: float | int) -> Example:
    """An Example from (ids, loss_mask) pairs and its scalar fields."""
    tokens = tuple(np.asarray(ids, np.int32) for ids, _ in sequences)
    masks = tuple(np.asarray(mask, np.float32) for _, mask in sequences)
    return Example(tokens, masks, fields)


@dataclasses.dataclass(frozen=True)
class Renderer:
    """The only way in which rows become ids.

    `counts` is the caller's own counter of what the length policy did (`prompts cut`, `responses shortened`).
    """

    tokenizer: Tokenizer
    section: DataSection
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter, compare=False)

    def __post_init__(self) -> None:
        if self.section.overlong not in POLICIES:
            raise UserError(f"config.data.overlong is {self.section.overlong!r}; one of {', '.join(POLICIES)}")

    # -- segments -----------------------------------------------------------------------------------------------------

    def _templated(
        self, turns: list[tuple[Message, list[Segment]]], prompt: bool = False, **extra: Any
    ) -> list[Segment]:
        """The segments of messages under the chat template: contents are found by rendering placeholders.

        Raises DataError if the template refuses the messages or rewrites their contents.
        """
        tokenizer = self.tokenizer
        for message, _ in turns:
            self._check_extras({k: v for k, v in message.items() if k != "content"})
        self._check_extras(extra)
        marks = template.has_generation(tokenizer.chat_template)
        contents = [score(c, m["role"] == "assistant" and not marks) for m, c in turns]

        def render(texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
            given = [{**message, "content": text} for (message, _), text in zip(turns, texts, strict=True)]
            return tokenizer.render(given, prompt, **extra)

        full, spans = render(["".join(s.text for s in content) for content in contents])
        parts = locate(full, contents, lambda texts: render(texts)[0])
        return scored_by_spans(parts, spans) if marks else scored_ends(parts, self._special_texts)

    def _check_extras(self, value: Any) -> None:
        """Refuse special-token text where it cannot be told from markup: roles, names, tool calls, tools."""
        if isinstance(value, str):
            found = next((text for text in self._special_texts if text in value), None)
            if found:
                raise DataError(f"a role, name or tool call spells the special token {found!r}; remove it")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._check_extras(key)
                self._check_extras(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._check_extras(item)

    @functools.cached_property
    def _special_texts(self) -> list[str]:
        return [self.tokenizer.text_of(token) for token in sorted(self.tokenizer.special_ids)]

    def _plain(self, turns: list[tuple[Message, list[Segment]]]) -> list[Segment]:
        """Messages as plain text with role tags, for tokenizers whose template is switched off."""
        out = []
        for index, (message, content) in enumerate(turns):
            name = NAMES.get(message["role"], str(message["role"]).capitalize())
            out += [Segment(f"{chr(10) * 2 if index else ''}{name}: "), *content]
        return out

    def _conversation(self, turns: list[tuple[Message, list[Segment]]], **extra: Any) -> list[Segment]:
        """A conversation with its assistant turns scored."""
        if self.tokenizer.chat_template:
            return self._templated(turns, **extra)
        self._need_template()
        return self._end(self._plain([(m, score(c) if m["role"] == "assistant" else c) for m, c in turns]))

    def _need_template(self) -> None:
        """Raises UserError for conversations when nobody said how to write them."""
        if not self.tokenizer.template_off:
            raise UserError(
                "the tokenizer has no chat template, but the rows are conversations. "
                "Pass --config.tokenizer.chat_template=chatml, a .jinja file, or none for plain text"
            )

    def _end(self, segments: list[Segment]) -> list[Segment]:
        """With the end token, scored, if there is one."""
        eos = self.tokenizer.eos_id
        return segments if eos is None else [*segments, Segment(self.tokenizer.text_of(eos), scored=True)]

    # -- ids ----------------------------------------------------------------------------------------------------------

    def _ids(self, segments: Sequence[Segment]) -> Pieces:
        """Every segment with its ids; BOS in front where the tokenizer puts one before plain text."""
        tokenizer = self.tokenizer
        out: Pieces = []
        if tokenizer.adds_bos and not tokenizer.chat_template:
            out.append((Segment(""), [tokenizer.bos_id]))  # type: ignore[list-item]
        started = False
        for segment in merged(segments):
            encode = tokenizer.encode_text if segment.content else tokenizer.encode_markup
            out.append((segment, encode(segment.text, continuing=started)))
            started = True
        flat_ids = [i for _, ids in out for i in ids[:2]][:2]
        if tokenizer.bos_id is not None and flat_ids == [tokenizer.bos_id] * 2:
            raise UserError(
                "the rendered text begins with two BOS tokens; the chat template and the tokenizer both add one"
            )
        return out

    def _fit(self, pieces: Pieces, room: int | None = None) -> Pieces:
        """Apply the length policy. Raises Drop for what cannot be shortened, DataError under `error`."""
        limit = self.section.max_length if room is None else room
        total = sum(len(ids) for _, ids in pieces)
        if total <= limit:
            return pieces
        policy = self.section.overlong
        if policy == "error":
            raise DataError(f"{total} tokens are more than config.data.max_length={limit}")
        if policy == "drop":
            raise Drop(f"longer than max_length {limit}", total)
        if policy == "truncate_prompt_left":
            fitted = cut_left(pieces, total - limit)
        else:
            fitted = cut_answers(pieces, total - limit)
        if fitted is None:
            raise Drop(f"longer than max_length {limit} even when shortened", total)
        self.counts["prompts cut" if policy == "truncate_prompt_left" else "responses shortened"] += 1
        return fitted

    def _rendered(self, segments: list[Segment]) -> tuple[list[int], list[float]]:
        return flatten(self._fit(self._ids(segments)))

    # -- renderings ---------------------------------------------------------------------------------------------------

    def completion(self, prompt: Text, answer: Text, **extra: Any) -> tuple[list[int], list[float]]:
        """Prompt and answer; the answer and its end token are scored.

        Messages go through the chat template (with its `{% generation %}` marks, or else the content of the answer up
        to the first special token after it); two strings are joined as they are, followed by EOS. Raises Drop by the
        length policy, and if nothing remains to be scored.
        """
        ids, mask = self._rendered(self._completion(prompt, answer, **extra))
        return check_mask(ids, mask)

    def _completion(self, prompt: Text, answer: Text, **extra: Any) -> list[Segment]:
        if isinstance(prompt, str) and isinstance(answer, str):
            pieces = [Segment(prompt, content=True, part="prompt")]
            return self._end([*pieces, Segment(answer, content=True, scored=True, part="first")])
        before = turns_of(prompt, "prompt") if prompt else []
        segments = self._conversation([*before, *turns_of(answer, "first", "assistant")], **extra)
        begin = next((i for i, s in enumerate(segments) if s.part == "first"), len(segments))
        return [*score(segments[:begin], False), *segments[begin:]]

    def completion_pair(self, prompt: Text, chosen: Text, rejected: Text, **extra: Any) -> tuple[Any, Any]:
        """(ids, mask) of chosen and of rejected, with the prompt cut by the same amount in both."""
        chosen_pair, rejected_pair = self.completions(prompt, (chosen, rejected), **extra)
        return chosen_pair, rejected_pair

    def completions(self, prompt: Text, answers: Sequence[Text], **extra: Any) -> list[tuple[list[int], list[float]]]:
        """(ids, mask) of every answer to one prompt, which is cut by the same amount in all."""
        made = [self._ids(self._completion(prompt, answer, **extra)) for answer in answers]
        longest = max(sum(len(ids) for _, ids in pieces) for pieces in made)
        excess = longest - self.section.max_length
        if excess > 0 and self.section.overlong == "truncate_prompt_left":
            cut = [cut_left(pieces, excess) for pieces in made]
            if None in cut:
                raise Drop(f"longer than max_length {self.section.max_length} even when shortened", longest)
            self.counts["prompts cut"] += 1
            made = cut  # type: ignore[assignment]
        return [check_mask(*flatten(self._fit(pieces))) for pieces in made]

    def conversation(self, messages: list[Message], **extra: Any) -> tuple[list[int], list[float]]:
        """A whole conversation; every assistant turn is scored. Raises Drop if it is too long or has none."""
        return check_mask(*self._rendered(self._conversation(turns_of(messages, "prompt"), **extra)))

    def text(self, text: str) -> tuple[list[int], list[float]]:
        """Plain text with EOS, everything scored."""
        return check_mask(*self._rendered(self._end([Segment(text, content=True, scored=True, part="prompt")])))

    def markup(self, text: str) -> tuple[list[int], list[float]]:
        """Text that a chat template wrote already: special tokens in it are recognised. It ends with EOS, once."""
        tokenizer = self.tokenizer
        bos, eos = (tokenizer.text_of(token) for token in (tokenizer.bos_id, tokenizer.eos_id))
        if tokenizer.adds_bos and not tokenizer.chat_template:
            text = text.removeprefix(bos)
        if eos:
            text = text.removesuffix(eos)
        return check_mask(*self._rendered(self._end([Segment(text, scored=True)])))

    def example(self, row: Mapping[str, Any]) -> Example:
        """The Example of a language-modelling or prompt-completion row. Raises Drop, or DataError for another type."""
        extra = row.get("chat_template_kwargs") or {}
        if row.get("tools"):
            extra = {**extra, "tools": row["tools"]}
        if "completion" in row:
            return example(self.completion(row.get("prompt") or "", row["completion"], **extra))
        if row.get("messages") is not None:
            return example(self.conversation(row["messages"], **extra))
        if row.get("text") is not None:
            return example(self.text(row["text"]))
        raise DataError(f"row {row.get('id')!r} has no 'text', 'messages' or 'completion'")

    def prompt(self, prompt: Text, **extra: Any) -> list[int]:
        """A prompt as it stands before an answer: with the template's generation prompt, ready to be continued."""
        if isinstance(prompt, str):
            return self._rendered([Segment(prompt, content=True, part="prompt")])[0]
        if self.tokenizer.chat_template:
            return self._rendered(self._templated(turns_of(prompt, "prompt"), prompt=True, **extra))[0]
        self._need_template()
        plain = self._plain([*turns_of(prompt, "prompt"), ({"role": "assistant", "content": ""}, [])])
        return self._rendered(plain)[0]

    def parts(self, prompt: Text, answer: Text | None = None) -> tuple[list[int], list[str]]:
        """A prompt, and an answer if there is one, as ids, and what each is of: `prompt`, `completion`, or markup ("").

        Without a chat template they stand there as plain text, conversations with role tags.
        """
        if not self.tokenizer.chat_template:
            segments = [*flat(prompt, "prompt"), *(flat(answer, "first") if answer is not None else [])]
        elif answer is not None:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            segments = self._completion(turns, answer)
        else:
            segments = self._templated(turns_of(prompt, "prompt"), prompt=True)
        pieces = self._fit(self._ids(segments))
        names = {"prompt": "prompt", "first": "completion"}
        return flatten(pieces)[0], [names.get(segment.part, "") for segment, ids in pieces for _ in ids]

    def _question(self, prompt: Text) -> list[Segment]:
        return [Segment(f"{QUESTION}\n"), *flat(prompt, "prompt")]

    def _answers(self, first: Text, second: Text) -> list[Segment]:
        out = []
        for letter, part, answer in (("A", "first", first), ("B", "second", second)):
            gap = "" if letter == "A" else "\n\n"
            body = flat(answer, part)
            out += [Segment(f"{gap}{START.format(letter)}\n"), *body, Segment(f"\n{END.format(letter)}")]
        return out

    def _judge_head(self) -> str:
        return self.section.judge_prompt.strip() or JUDGE_PROMPT

    def judge(self, prompt: Text, first: Text, second: Text) -> list[int]:
        """GRAM's comparison of two answers; the last id is where the verdict is predicted.

        One user turn under the chat template, plain text without one. A dialogue is flattened with role tags into the
        question. The order of the answers does not change the length. Raises Drop by the length policy; instruction,
        markers and cue are never cut.
        """
        body = [
            Segment(f"{self._judge_head()}\n\n"),
            *self._question(prompt),
            Segment("\n\n"),
            *self._answers(first, second),
            Segment(f"\n\n{self.section.judge_cue}"),
        ]
        return self._rendered(self._judged(body))[0]

    def _judged(self, body: list[Segment]) -> list[Segment]:
        if not self.tokenizer.chat_template:
            return body
        message: Message = {"role": "user", "content": ""}
        return score(self._templated([(message, body)], prompt=True), False)

    def pair_text(self, prompt: Text, first: Text, second: Text) -> tuple[list[int], list[float]]:
        """GRAM's stage 1: the question, then both marked answers, all of which is scored; no judge instruction."""
        question, answers = self._question(prompt), self._answers(first, second)
        if self.tokenizer.chat_template:
            turns: list[tuple[Message, list[Segment]]] = [
                ({"role": "user", "content": ""}, question),
                ({"role": "assistant", "content": ""}, score(answers)),
            ]
            return check_mask(*self._rendered(self._templated(turns)))
        return check_mask(*self._rendered(self._end([*question, Segment("\n\n"), *score(answers)])))

    def preference(self, prompt: Text, first: Text, second: Text) -> tuple[list[int], list[float]]:
        """The question, both marked answers, and one place for a learned vector, the last (LRHP, arXiv 2410.04503).

        Under a chat template the answers stand where an assistant's turn does, which is not closed. The order of the
        answers does not change the length. What id stands at the last place means nothing: the model puts its own
        vector there. The mask is 1 at the tokens of both answers. Raises Drop by the length policy; markers and the
        last place are never cut.
        """
        question, answers = self._question(prompt), self._answers(first, second)
        segments = [*question, Segment("\n\n"), *answers]
        if self.tokenizer.chat_template:
            turns: list[tuple[Message, list[Segment]]] = [
                ({"role": "user", "content": ""}, question),
                ({"role": "assistant", "content": ""}, answers),
            ]
            templated = score(self._templated(turns), False)
            end = max(i for i, segment in enumerate(templated) if segment.part == "second")
            segments = [*templated[: end + 1], Segment(f"\n{END.format('B')}")]
        marked = [dataclasses.replace(segment, scored=segment.part in ("first", "second")) for segment in segments]
        ids, mask = flatten(self._fit(self._ids(marked), self.section.max_length - 1))
        return [*ids, self.tokenizer.pad_id], [*mask, 0.0]

    @functools.cached_property
    def verdict_ids(self) -> tuple[int, int]:
        """Ids of the two verdicts where the judge's rendering ends.

        Raises UserError if a verdict is not one token there, or both are the same token; the message says what to set.
        """
        found = [self._verdict(text) for text in self.section.verdicts]
        for text, ids in zip(self.section.verdicts, found, strict=True):
            if len(ids) != 1 or ids[0] == self.tokenizer.unk_id:
                raise UserError(
                    f"the verdict {text!r} is {len(ids)} tokens {ids} after {self.section.judge_cue!r} with this "
                    f"tokenizer; one known token is needed{self._other_verdicts()}"
                )
        if found[0] == found[1]:
            raise UserError(
                f"both verdicts {self.section.verdicts} are the same token {found[0][0]}; set config.data.verdicts"
            )
        return found[0][0], found[1][0]

    def _verdict(self, text: str) -> list[int]:
        return self.tokenizer.encode_text(text, continuing=True)

    def _other_verdicts(self) -> str:
        for pair in (("A", "B"), (" A", " B"), ("1", "2"), (" 1", " 2")):
            if all(len(self._verdict(text)) == 1 for text in pair):
                return f'. Try --config.data.verdicts="{pair}"'
        return ". Set config.data.verdicts to two texts that are one token each"
