"""Small tokenizers that the tests of this folder share."""

import pytest

from gramjax.data import template, tokenizer

CORPUS = [
    "You are an impartial judge. Which answer is better? Reply with A or B.",
    "Hello there, how are you today? I am fine, thank you. What is the capital of France? It is Paris.",
    "user assistant system tool question answer start end of the preferred",
] * 4


@pytest.fixture(scope="session")
def plain():
    """A trained BPE without a chat template."""
    return tokenizer.train_bpe(CORPUS, 400)


@pytest.fixture(scope="session")
def chat():
    """The same BPE with the chatml template."""
    return tokenizer.train_bpe(CORPUS, 400, chat_template="chatml")


@pytest.fixture(scope="session")
def with_template(plain):
    """A function from Jinja source to the trained BPE with that template as its own."""

    def make(source: str) -> tokenizer.Tokenizer:
        names = [plain.text_of(i) for i in (plain.bos_id, plain.eos_id, plain.pad_id)]
        template.check(source)
        return tokenizer.build(plain.library, *names, own_template=source)

    return make
