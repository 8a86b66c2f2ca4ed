"""Tokenizers: the `tokenizers` library and a Jinja sandbox, without transformers.

A text is encoded in one of two ways: as markup (special tokens in it are recognised: what templates write) or as
content (text that spells a special token stays text: what users and data write).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjax.core import plugins
from gramjax.core.errors import DataError, UserError
from gramjax.data import template

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

PAD_NAMES = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|fim_pad|>",
    "<|endoftext|>",
)
"""Special tokens that may serve as padding, best first."""

NEW_PAD = "<|pad|>"
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
"""The special tokens of the built-in byte tokenizer and of trained ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with its special tokens and its chat template. Immutable; made by `load`, `byte_level` or `build`."""

    library: "Library"
    """Recognises special tokens."""
    plain: "Library"
    """Keeps the text of special tokens as text."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    adds_bos: bool
    """The tokenizer itself puts a BOS before plain text."""
    chat_template: str = ""
    """Jinja source; empty: none."""
    template_off: bool = False
    """The setting `none`: conversations are written as plain text on purpose."""
    notes: tuple[str, ...] = ()
    """What a person should know (which token pads, and why)."""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """tokenizer_config.json of the source, carried along when saving."""

    @functools.cached_property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, without the one for unknown text."""
        added = self.library.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special) - {self.unk_id}

    @functools.cached_property
    def unk_id(self) -> int | None:
        """Id of the token for unknown text, if there is one."""
        name = getattr(self.library.model, "unk_token", None)
        return self.library.token_to_id(name) if name else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides ids: vocabulary, merges, special tokens, template."""
        facts = [self.library.to_str(), self.chat_template, self.bos_id, self.eos_id, self.pad_id, self.adds_bos]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @functools.cached_property
    def _lead(self) -> tuple[str, list[int]]:
        """Text to put before a piece from the middle of a text, and its ids.

        SentencePiece-like tokenizers put a space before every text they are given; a newline in front takes it away
        from the piece itself. Empty for the others.
        """
        alone, after, newline = (self.library.encode(t, add_special_tokens=False).ids for t in ("x", "\nx", "\n"))
        spaced = alone != after[len(newline) :] and after[: len(newline)] == newline
        return ("\n", newline) if spaced else ("", [])

    def _encode(self, library: "Library", text: str, continuing: bool) -> list[int]:
        if not text:
            return []
        lead, lead_ids = self._lead if continuing else ("", [])
        try:
            ids = library.encode(lead + text, add_special_tokens=False).ids
        except TypeError:
            raise DataError("text holds a lone surrogate (half of a character), which cannot be encoded") from None
        if lead and ids[: len(lead_ids)] != lead_ids:
            return library.encode(text, add_special_tokens=False).ids
        return ids[len(lead_ids) :]

    def encode_text(self, text: str, continuing: bool = False) -> list[int]:
        """Ids of content: never a special token, whatever the text spells.

        `continuing`: the text follows other text, so it gets no SentencePiece space in front. Raises DataError for a
        lone surrogate and for a tokenizer whose plain vocabulary holds its special tokens.
        """
        ids = self._encode(self.plain, text, continuing)
        if not self.special_ids.isdisjoint(ids):
            bad = next(i for i in ids if i in self.special_ids)
            raise DataError(
                f"the tokenizer makes its special token {self.library.id_to_token(bad)!r} out of plain text"
            )
        return ids

    def encode_markup(self, text: str, continuing: bool = False) -> list[int]:
        """Ids of what a template wrote: special tokens in it are recognised. Nothing is added."""
        return self._encode(self.library, text, continuing)

    def special(self, text: str) -> int:
        """Id of a token by its text. Raises UserError if there is none."""
        found = self.library.token_to_id(text)
        if found is None:
            raise UserError(f"the tokenizer has no token {text!r}")
        return found

    def text_of(self, token: int | None) -> str:
        """A token's text in the vocabulary; empty for None."""
        return "" if token is None else (self.library.id_to_token(token) or f"<{token}>")

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids."""
        return self.library.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def render(self, messages: list[dict[str, Any]], generation_prompt: bool, **variables: Any) -> tuple[str, list]:
        """The chat template's text for messages and its assistant spans (see `template.render`)."""
        names = {"bos_token": self.text_of(self.bos_id), "eos_token": self.text_of(self.eos_id)}
        names |= {"pad_token": self.text_of(self.pad_id), "unk_token": self.text_of(self.unk_id)}
        rest = {"tools": None, "documents": None, "enable_thinking": False} | variables
        return template.render(
            self.chat_template, {**names, **rest, "messages": messages, "add_generation_prompt": generation_prompt}
        )

    def check_fits(self, rows: int) -> None:
        """Raises UserError if the tokenizer has ids that an embedding with `rows` rows does not have."""
        if self.vocab_size > rows:
            last = self.text_of(self.vocab_size - 1)
            raise UserError(
                f"the tokenizer has {self.vocab_size} ids (the last is {last!r}), the model has {rows} embedding rows; "
                "use the model's own tokenizer, or set config.tokenizer.pad to a token that exists"
            )

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

        Readable by transformers 4 and 5: the class is `PreTrainedTokenizerFast`, which both know.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id, "unk_token": self.unk_id}
        tokens = {name: self.text_of(token) for name, token in names.items() if token is not None}
        foreign = ("auto_map", "backend", "tokenizer_file", "name_or_path", "chat_template", "extra_special_tokens")
        config = {k: v for k, v in self.config.items() if k not in foreign}
        if isinstance(extra := self.config.get("extra_special_tokens"), list):
            config.setdefault("additional_special_tokens", extra)  # transformers 4 wants a dict under the new name
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        config.setdefault("clean_up_tokenization_spaces", False)
        config.setdefault("model_max_length", 1_000_000_000)
        if self.chat_template:
            config["chat_template"] = self.chat_template
        (path / "tokenizer.json").write_text(self.library.to_str(pretty=True), "utf-8")
        for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", tokens)):
            (path / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
        jinja = path / "chat_template.jinja"
        if self.chat_template:
            jinja.write_text(self.chat_template, "utf-8")
        else:
            jinja.unlink(missing_ok=True)


def _library(text: str, where: str) -> "Library":
    from tokenizers import Tokenizer as Library

    try:
        made = Library.from_str(text)
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{where}: no readable tokenizer ({error})") from None
    made.no_truncation()
    made.no_padding()
    return made


def _choose_pad(library: "Library", bos: int | None, eos: int | None, declared: str, wanted: str) -> tuple[str, str]:
    """The token that pads, and a note if it is not the declared one. Never EOS."""
    if wanted:
        if library.token_to_id(wanted) is None:
            raise UserError(f"config.tokenizer.pad: the tokenizer has no token {wanted!r}")
        if library.token_to_id(wanted) == eos:
            raise UserError(
                f"config.tokenizer.pad is {wanted!r}, the end token; scores would be read from the wrong token"
            )
        return wanted, ""
    found = library.token_to_id(declared) if declared else None
    if found is not None and found != eos:
        return declared, ""
    why = (
        f"pad and eos share id {eos}; scores would be read from the wrong token."
        if found is not None
        else "no pad token."
    )
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    model = library.model
    unknown = getattr(model, "unk_token", None)
    names = [name for name in PAD_NAMES if name in special]
    if unknown and getattr(model, "byte_fallback", False):
        names.append(unknown)  # with byte fallback no text becomes the unknown token, so its id is free
    for name in names:
        if library.token_to_id(name) not in (None, bos, eos):
            kind, new = "reserved", library.token_to_id(name)
            break
    else:
        name, kind, new = NEW_PAD, "new", max(library.get_vocab(with_added_tokens=True).values()) + 1
    return name, f"{why} Using {kind} id {new} as pad (set config.tokenizer.pad to choose)"


def build(
    library: "Library",
    bos: str = "",
    eos: str = "",
    declared_pad: str = "",
    pad: str = "",
    chat_template: str = "",
    own_template: str = "",
    config: dict[str, Any] | None = None,
) -> Tokenizer:
    """A Tokenizer from a library object. `chat_template` is the setting, `own_template` the tokenizer's own Jinja.

    Raises UserError for a token that does not exist or a template that is no valid Jinja.
    """
    from tokenizers import AddedToken

    ids = {}
    for name, text in (("bos", bos), ("eos", eos)):
        ids[name] = library.token_to_id(text) if text else None
        if text and ids[name] is None:
            raise UserError(f"the tokenizer names {text!r} as its {name} token but does not have it")
    name, note = _choose_pad(library, ids["bos"], ids["eos"], declared_pad, pad)
    if library.token_to_id(name) is None:
        library.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    pad_id = library.token_to_id(name)
    assert pad_id is not None
    encoded = library.encode("x").ids
    adds_bos = ids["bos"] is not None and encoded[:1] == [ids["bos"]]
    plain = _library(library.to_str(), "tokenizer")
    plain.encode_special_tokens = True
    off = chat_template == "none"
    source = "" if off else template.find(chat_template) if chat_template else own_template
    if source:
        template.check(source)
    notes: tuple[str, ...] = (note,) if note else ()
    if chat_template == "chatml" and library.token_to_id("<|im_end|>") is None:
        notes += ("chatml's <|im_start|> and <|im_end|> are no tokens of this tokenizer; they are written as text",)
    return Tokenizer(library, plain, ids["bos"], ids["eos"], pad_id, adds_bos, source, off, notes, config or {})


def _text(path: Path) -> str:
    """The text of a file of a tokenizer. Raises DataError."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: an object was expected")
    return value


def _token_text(value: Any) -> str:
    value = value.get("content", "") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _folder(path: Path, pad: str, chat_template: str) -> Tokenizer:
    """A Hugging Face folder: tokenizer.json with what stands beside it."""
    library = _library(_text(path / "tokenizer.json"), str(path / "tokenizer.json"))
    config = _json(path / "tokenizer_config.json")
    names = _json(path / "special_tokens_map.json") | {k: v for k, v in config.items() if v is not None}
    model = _json(path / "config.json")

    def token(kind: str) -> str:
        text = _token_text(names.get(f"{kind}_token"))
        known = model.get(f"{kind}_token_id")
        known = known[0] if isinstance(known, list) and known else known
        return text or (library.id_to_token(known) or "" if isinstance(known, int) and 0 <= known < 2**31 else "")

    own: Any = config.get("chat_template") or ""
    if isinstance(own, list):  # several named templates
        named = [entry for entry in own if isinstance(entry, dict) and entry.get("name") == "default"]
        own = named[0].get("template") if named else ""
    if (path / "chat_template.jinja").is_file():
        own = _text(path / "chat_template.jinja")
    if not isinstance(own, str):
        raise DataError(f"{path / 'tokenizer_config.json'}: 'chat_template' is no text")
    return build(library, token("bos"), token("eos"), token("pad"), pad, chat_template, own, config)


def load(path: str, pad: str = "", chat_template: str = "") -> Tokenizer:
    """A tokenizer by the settings of `config.tokenizer`.

    `path` is a folder with tokenizer.json (or GPT-2's vocab.bpe and encoder.json), a tokenizer.json, a llama2.c `.bin`
    file, `bytes`, or `recipe:NAME`. Raises UserError or DataError naming the path.
    """
    from gramjax.data import vocabularies

    if path == "bytes":
        return byte_level(pad, chat_template)
    if path.startswith("recipe:"):
        return plugins.load("data/recipes", path.split(":")[1]).tokenizer(pad, chat_template)
    place = Path(path)
    if place.is_file() and place.suffix == ".bin":
        library = vocabularies.llama2c(place)
        return build(library, "<s>", "</s>", "", pad, chat_template)
    if place.is_file() and place.name == "tokenizer.json":
        place = place.parent
    if (place / "tokenizer.json").is_file():
        return _folder(place, pad, chat_template)
    if any((place / name).is_file() for name in vocabularies.GPT2_VOCABULARY):
        return build(vocabularies.gpt2(place), "", "<|endoftext|>", "", pad, chat_template)
    if not place.exists():
        raise UserError(f"offline: {path} not found locally. Copy the model folder and pass its path (or 'bytes')")
    raise UserError(f"{path} has no tokenizer.json (SentencePiece .model files: convert them to tokenizer.json first)")


def byte_level(pad: str = "", chat_template: str = "") -> Tokenizer:
    """The built-in tokenizer: one id per byte (the byte itself), then `SPECIALS`. Every text round-trips exactly."""
    from gramjax.data import vocabularies

    return build(vocabularies.byte_level(SPECIALS), SPECIALS[0], SPECIALS[1], SPECIALS[2], pad, chat_template)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    specials: Sequence[str] = SPECIALS,
    bos: str = "<|bos|>",
    eos: str = "<|eos|>",
    pad: str = "<|pad|>",
    chat_template: str = "",
) -> Tokenizer:
    """A byte-level BPE trained on texts in memory; the same texts in the same order give the same tokenizer."""
    from gramjax.data import vocabularies

    return build(vocabularies.train_bpe(texts, vocab_size, specials), bos, eos, pad, "", chat_template)
