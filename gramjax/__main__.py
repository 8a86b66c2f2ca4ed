"""`python -m gramjax VERB` is `gramjax VERB`."""

from gramjax.cli import run

if __name__ == "__main__":
    run()
