"""What requests and answers look like: the forms that clients of reward servers speak already, and one of our own.

Checked strictly: a field that is not known and a value of another type are refused, so that nothing is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Strict(BaseModel):
    """A body in which every field is known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Message(Strict):
    """A turn of a conversation."""

    role: Role
    content: str


Messages = Annotated[list[Message], Field(min_length=1)]
Text = str | Messages


class Pair(Strict):
    """A prompt and its answer, apart."""

    prompt: Text
    response: Text


Item = str | Messages | Pair
"""What can be scored: a text or a conversation with its answer in it, or prompt and answer apart."""

References = Text | Annotated[list[Text], Field(min_length=1)] | None
"""What a judge compares with: one answer for all, or one for each."""


class Classify(Strict):
    """`/v1/classify` (the form of vLLM; `text` instead of `input` as SGLang has it), with one of the three."""

    model: str | None = None
    input: Item | Annotated[list[Item], Field(min_length=1)] | None = None
    text: str | Annotated[list[str], Field(min_length=1)] | None = None
    messages: Messages | None = None
    """One conversation that ends with its answer, as newer versions of vLLM take it."""
    use_activation: bool | None = None
    """Answer the sigmoid of a score (a probability, the default); False: the score itself."""
    activation: bool | None = None
    """The older name of it (vLLM before 0.11.2, verl)."""
    add_special_tokens: bool = True
    """False only where the server reads special tokens in texts (config.serve.special_tokens)."""
    reference: References = None

    @property
    def activated(self) -> bool:
        """Whether the sigmoid is wanted."""
        return False not in (self.use_activation, self.activation)


class GetReward(Strict):
    """`/get_reward` (the form of OpenRLHF)."""

    query: str | Annotated[list[str], Field(min_length=1)]
    """Prompt and answer as one text."""
    prompts: list[str] | None = None
    """The beginnings of the queries that are the prompts."""
    labels: list[Any] | None = None
    """Accepted for OpenRLHF, which sends the labels of its data; a model needs none."""
    reference: References = None


ANY_MODEL = "model"
"""What LLaMA-Factory's trainer calls every model that it asks."""


class ScoreEvaluation(Strict):
    """`/v1/score/evaluation` (the form of LLaMA-Factory)."""

    model: str | None = None
    """The name of the model, or "model", which LLaMA-Factory's trainer always says."""
    messages: Annotated[list[str], Field(min_length=1)]
    """Texts, each prompt and answer."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Refuse texts with more tokens than this."""


class Compare(Strict):
    """`/v1/compare`: which of several answers is better."""

    model: str | None = None
    prompt: Text
    responses: Annotated[list[Text], Field(min_length=2)]
    swap: bool = True
    """Show every pair in both orders; false: only as given."""
    method: Literal["auto", "linear", "knockout", "round_robin"] = "auto"
    """How a judge puts more than two in order (`auto`: round_robin up to 16, else knockout)."""
    top: Annotated[int, Field(ge=0)] = 0
    """How many of the best to find; 0: the whole order."""
    rationale: bool = False
    """Answer what a judge wrote too (true only of a model that writes rationales)."""


class ClassData(BaseModel):
    """The class of one text: there is one class, and `probs` holds its probability or score."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """Tokens that were read and drawn."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classified(BaseModel):
    """Answer of `/v1/classify`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassData]
    usage: Usage


class Rewards(BaseModel):
    """Answer of `/get_reward`: rewards, and the same as scores."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Evaluated(BaseModel):
    """Answer of `/v1/score/evaluation`."""

    id: str
    object: Literal["score.evaluation"]
    model: str
    scores: list[float]


class Judgement(BaseModel):
    """One written judgement."""

    text: str
    a_shown: Literal["first", "second"]
    """Where response a stood."""
    verdict: Literal["A", "B"] | None
    """Null: none could be read."""
    p_a: float | None
    """Probability of the letter for response a, where it was written."""


class Judged(BaseModel):
    """One pair: indices of the responses, the probability that the first of them is better, and of either order."""

    a: int
    b: int
    p_a: float
    p_a_shown_first: float | None
    p_a_shown_second: float | None
    verdict: Literal["A", "B", "tie"]
    consistent: bool | None
    rationale: str | None = None
    """On wish: what was written for the verdict, by the surest judgement that agrees with it."""
    judgements: list[Judgement] | None = None
    """On wish: all that was written."""


class Compared(BaseModel):
    """Answer of `/v1/compare`."""

    id: str
    object: Literal["comparison"]
    created: int
    model: str
    kind: str
    method: str
    """`pair` of two, how a judge ordered more, or `score`: the order of the scores."""
    order: list[int]
    """Indices of the responses, best first."""
    scores: list[float | None]
    """By response: its reward, or a judge's mean probability that it is better, over its pairs (null: in none)."""
    pairs: list[Judged]
    p_a: float | None
    """Of two responses: the probability that the first is better."""
    verdict: Literal["A", "B", "tie"] | None
    judge_calls: int
    """Sequences that were read, two for a pair in both orders, or judgements that were written."""
    usage: Usage


class Health(BaseModel):
    """Answer of `/health`."""

    status: Literal["ok"]
    model: str
    kind: str
    waiting: int
    """Sequences that wait."""
    batches: int
    """Read so far."""
    programs: int
    """Compiled so far; it grows no more once the server answers."""


class ModelCard(BaseModel):
    """A model, as OpenAI's clients list them."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str
    max_length: int


class Models(BaseModel):
    """Answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorFacts(BaseModel):
    """What was wrong."""

    message: str
    type: str
    code: int
    param: str | None = None


class Error(BaseModel):
    """The form of every answer that is no result."""

    error: ErrorFacts
