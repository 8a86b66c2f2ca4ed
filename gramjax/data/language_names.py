"""Names and codes of languages, and which language a file name speaks of."""

import re

NAMES = {
    "en": ("English", "eng"), "ar": ("Arabic", "ara"), "bg": ("Bulgarian", "bul"), "bn": ("Bengali", "ben"),
    "cs": ("Czech", "ces"), "de": ("German", "deu"), "el": ("Greek", "ell"), "es": ("Spanish", "spa"),
    "fa": ("Persian", "pes"), "fi": ("Finnish", "fin"), "fr": ("French", "fra"), "he": ("Hebrew", "heb"),
    "hi": ("Hindi", "hin"), "id": ("Indonesian", "ind"), "it": ("Italian", "ita"), "ja": ("Japanese", "jpn"),
    "km": ("Khmer", "khm"), "ko": ("Korean", "kor"), "ne": ("Nepali", "nep"), "nl": ("Dutch", "nld"),
    "pl": ("Polish", "pol"), "ps": ("Pashto", "pus"), "pt": ("Portuguese", "por"), "ro": ("Romanian", "ron"),
    "ru": ("Russian", "rus"), "si": ("Sinhala", "sin"), "sv": ("Swedish", "swe"), "sw": ("Swahili", "swh"),
    "te": ("Telugu", "tel"), "th": ("Thai", "tha"), "tr": ("Turkish", "tur"), "uk": ("Ukrainian", "ukr"),
    "vi": ("Vietnamese", "vie"), "zh": ("Chinese", "cmn"),
}  # fmt: skip
"""Two-letter code: name in English, three-letter code (ISO 639-3)."""

_CODES = {
    **{word: code for code, (name, long) in NAMES.items() for word in (code, name.lower(), long)},
    "swa": "sw", "zho": "zh", "chi": "zh", "ger": "de", "fre": "fr", "fas": "fa", "per": "fa", "npi": "ne", "pbt": "ps",
}  # fmt: skip


def code(word: str) -> str:
    """The two-letter code of a language given by code or English name; empty: not known."""
    return _CODES.get(word.strip().lower(), "")


def name(language: str) -> str:
    """The English name of a language, or its code where none is known."""
    return NAMES[language][0] if language in NAMES else language


def of_file(file_name: str) -> tuple[str, ...]:
    """The languages that a file name (without folders) speaks of: none, one, or two."""
    stem = file_name.split(".")[0]
    both = tuple(code(part) for part in stem.split("-"))
    if len(both) == 2 and all(both) and both[0] != both[1]:
        return both
    found = code(stem) or code(re.split(r"[_-]", stem)[-1])
    return (found,) if found else ()
