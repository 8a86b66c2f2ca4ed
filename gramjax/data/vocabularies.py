"""Library tokenizers made without a tokenizer.json: bytes, BPE trained in memory, llama2.c and GPT-2 files."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gramjax.core.errors import DataError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

GPT2_VOCABULARY = ("encoder.json", "encoder.json.gz", "vocab.json")
GPT2_MERGES = ("vocab.bpe", "vocab.bpe.gz", "merges.txt")
SPACE = "\u2581"
"""SentencePiece's visible space."""
MAX_PIECE = 1024


def byte_characters() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out, spare = [], 256
    for byte in range(256):
        out.append(chr(byte) if byte in printable else chr(spare))
        spare += byte not in printable
    return out


def _with_specials(library: "Library", specials: Sequence[str]) -> "Library":
    from tokenizers import AddedToken

    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return library


def _bos_first(library: "Library", bos: str) -> None:
    """Let the library put BOS before every text, as model folders do."""
    from tokenizers import processors

    library.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, library.token_to_id(bos))]
    )


def byte_level(specials: Sequence[str]) -> "Library":
    """Ids 0-255 are the bytes, then `specials`, of which the first is BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE(vocab={c: byte for byte, c in enumerate(byte_characters())}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    _with_specials(library, specials)
    _bos_first(library, specials[0])
    return library


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Library":
    """Byte-level BPE with `vocab_size` ids in all; `specials` come first, the first of them is BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 256 + len(specials):
        raise UserError(f"a byte-level vocabulary needs at least {256 + len(specials)} ids, {vocab_size} given")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    _bos_first(library, specials[0])
    return library


def words(vocabulary: Sequence[str], specials: Sequence[str]) -> "Library":
    """One id per text of a closed vocabulary (a word is listed with the space before it), bytes for any other text.

    `specials` come last, the first of them is BOS. Raises UserError for a text that is listed twice.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = byte_characters()
    pieces = alphabet + ["".join(alphabet[byte] for byte in text.encode()) for text in vocabulary]
    if len(set(pieces)) != len(pieces):
        raise UserError("a closed vocabulary lists a text twice, or a single byte")
    # without merges, ignore_merges makes a piece of text one token exactly when the vocabulary lists it
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    _with_specials(library, specials)
    _bos_first(library, specials[0])
    return library


def _llama2c_pieces(path: Path) -> list[tuple[float, bytes]]:
    raw = path.read_bytes()
    pieces, offset = [], 4
    try:
        (longest,) = struct.unpack_from("<i", raw)
        while offset < len(raw):
            score, length = struct.unpack_from("<fi", raw, offset)
            offset += 8
            if not 0 <= length <= min(longest + 16, MAX_PIECE) or offset + length > len(raw):
                raise DataError(f"{path.name}: no llama2.c tokenizer (a piece of {length} bytes at byte {offset})")
            pieces.append((score, raw[offset : offset + length]))
            offset += length
    except struct.error:
        raise DataError(f"{path.name}: no llama2.c tokenizer, or truncated (at byte {offset})") from None
    if len(pieces) < 259 or pieces[3][1] != b"<0x00>":
        raise DataError(f"{path.name}: no llama2.c tokenizer with byte fallback ({len(pieces)} pieces)")
    return pieces


def llama2c(path: Path) -> "Library":
    """The tokenizer of a llama2.c model (`tok512.bin`): SentencePiece BPE as Llama 2 has it, ids kept.

    Its file holds pieces and scores but no merges: the better score is merged first, so every way to split a piece
    into two pieces is a merge, ranked by the score of the whole. Raises DataError for another kind of file.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = _llama2c_pieces(path)
    control = ["<unk>", "<s>", "</s>"]
    try:
        texts = control + [piece.decode("utf-8").replace(" ", SPACE) for _, piece in pieces[3:]]
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: no llama2.c tokenizer (a piece is no UTF-8: {error.object[:20]!r})") from None
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        raise DataError(f"{path.name}: a piece occurs twice")
    joined = [i for i in range(259, len(texts)) if len(texts[i]) > 1]
    joined.sort(key=lambda i: (-pieces[i][0], i))
    merges = []
    for index in joined:
        text = texts[index]
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += [pair for pair in splits if all(259 <= ids.get(part, 0) for part in pair)]
    library = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    _with_specials(library, control)
    _bos_first(library, "<s>")
    return library


def _read(folder: Path, names: Sequence[str]) -> str:
    for name in names:
        path = folder / name
        if path.is_file():
            try:
                raw = path.read_bytes()
                return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8")
            except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read ({error})") from None
    raise UserError(f"{folder} has none of {', '.join(names)}")


def gpt2(folder: Path) -> "Library":
    """OpenAI's GPT-2 files, `vocab.bpe` and `encoder.json` (also gzipped, also under their later names)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        vocabulary = json.loads(_read(folder, GPT2_VOCABULARY))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder}: the vocabulary is no JSON ({error})") from None
    if not isinstance(vocabulary, dict) or not all(type(token) is int and token >= 0 for token in vocabulary.values()):
        raise DataError(f"{folder}: the vocabulary does not map texts to ids")
    lines = [line for line in _read(folder, GPT2_MERGES).split("\n") if line and not line.startswith("#version")]
    merges = [tuple(line.split(" ")) for line in lines]
    if any(len(pair) != 2 for pair in merges):
        raise DataError(f"{folder}: a line of the merges does not hold two pieces")
    try:
        library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))  # type: ignore[arg-type]
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{folder}: vocabulary and merges do not belong together ({error})") from None
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return _with_specials(library, ["<|endoftext|>"])
