"""Who is there at the start of a job of several processes: everybody goes on, or everybody is told why not."""

import concurrent.futures
import socket

import pytest

from gramjax import cli
from gramjax.core import rendezvous
from gramjax.core.errors import GramjaxError, UserError


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def met(numbers, count=3, seconds=30.0, counts=None):
    """What each of some processes of a job finds: its error, or None."""
    address = f"127.0.0.1:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
        asked = [pool.submit(rendezvous.meet, address, n, (counts or {}).get(n, count), seconds) for n in numbers]
        return [future.exception() for future in asked]


def test_all_go_on_when_all_are_there():
    assert met([2, 0, 1]) == [None, None, None]


def test_a_missing_process_is_named_with_those_that_came():
    """F9."""
    errors = met([0, 2], seconds=1.0)
    assert all(type(error) is GramjaxError for error in errors)
    assert all("2 of 3 processes came within 1 s" in str(e) and "missing: 1." in str(e) for e in errors)
    assert all(f"0 on {socket.gethostname()}, 2 on" in str(e) and "GRAMJAX_JOIN_SECONDS" in str(e) for e in errors)


def test_nobody_at_the_address_names_address_and_setting():
    """F9, F10: the coordinator never starts, or the address is another's."""
    (error,) = met([1], count=2, seconds=0.5)
    assert type(error) is GramjaxError and "process 1 of 2" in str(error) and "127.0.0.1:" in str(error)
    assert "JAX_COORDINATOR_ADDRESS or --distributed" in str(error)


def test_two_processes_of_one_number_and_of_different_counts_are_told():
    twice = [str(error) for error in met([0, 1, 1]) if error is not None]
    assert len(twice) == 3 and all("two processes have the number 1" in text for text in twice)
    counts = met([0, 1], count=2, counts={1: 4})
    assert all(isinstance(e, UserError) and "told of 2 processes, process 1" in str(e) and "of 4" in str(e)
               for e in counts)  # fmt: skip


def test_a_stranger_on_the_port_is_no_process():
    """A health check, or a browser: neither counts, nor holds anybody up for long."""
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 0, 2, 30.0)
        for said in (b"GET / HTTP/1.0\r\n\r\n", b""):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as caller:
                        caller.sendall(said)
                    break
                except ConnectionRefusedError:
                    pass
        second = pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 1, 2, 30.0)
        assert first.result() is None and second.result() is None


def test_a_port_in_use_and_a_wrong_address_end_a_job_before_it_begins(monkeypatch, tmp_path):
    """F10."""
    config = ["--config=quickstart", f"--workdir={tmp_path / 'run'}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen at {address}.*Address already in use.*--distributed"):
            cli.main(["train", *config, f"--distributed={address},0,2"])
    with pytest.raises(UserError, match="coordinator's address is 'here:notaport'"):
        cli.main(["train", *config, "--distributed=here:notaport,0,2"])
    monkeypatch.setenv("GRAMJAX_JOIN_SECONDS", "soon")
    with pytest.raises(UserError, match="GRAMJAX_JOIN_SECONDS=soon: expected a number of seconds"):
        cli.main(["train", *config, f"--distributed={address},0,2"])
    assert not (tmp_path / "run").exists()


JOBS = {
    "score": ["--config=score", "--config.model.path=m", "--config.data.path=d", "--workdir=w"],
    "annotate": ["--config=annotate:predict_margins", "--config.model.path=m", "--config.data.path=d", "--workdir=w"],
    "select_layers": ["--config=select_layers", "--config.model.path=m", "--config.data.path=d", "--workdir=w"],
    "select_data": ["--config=select_data", "--config.data.path=d", "--workdir=w"],
    "generate": ["--config=generate", "--config.model.path=m", "--prompt=hello"],
    "serve": ["--config=serve", "--config.model.path=m"],
    "convert": ["a", "b"],
}


@pytest.mark.parametrize("verb", JOBS)
def test_a_verb_of_one_process_says_so_in_each_of_several(monkeypatch, verb):
    """Not by a lock that the second one finds, and before anything is read."""
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    for number in ("0", "1"):
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        with pytest.raises(UserError, match=f"gramjax {verb} runs in one process.*2 were started: start it once"):
            cli.main([verb, *JOBS[verb]])
