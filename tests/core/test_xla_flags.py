"""Every flag of the table is known to the compilers that are installed; one that is not is refused by name."""

import importlib.util
from pathlib import Path

import pytest

from gramjax.core import runtime, xla_flags
from gramjax.core.errors import UserError
from gramjax.jobs import doctor


def of(platform):
    return {flag.name: flag.value for flag in xla_flags.TABLE if flag.platform == platform and flag.taken()}


def test_gpu_and_cpu_flags_are_known_to_xla():
    """One process is given all of them, and one flag that never was: that one alone is complained of."""
    assert xla_flags.unknown_to_xla({**of("gpu"), "xla_gpu_made_up": "1"}) == ["--xla_gpu_made_up=1"]
    assert xla_flags.check(of("gpu"), "gpu") and xla_flags.check(of("cpu"), "cpu")


def test_a_value_that_cannot_be_is_named():
    with pytest.raises(UserError, match="XLA_FLAGS: this XLA does not take .*xla_gpu_all_reduce_combine"):
        xla_flags.check({"xla_gpu_all_reduce_combine_threshold_bytes": "many"}, "gpu")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: gramjax[plan]")
def test_tpu_flags_are_known_to_its_compiler():
    """A line is compiled with each for a slice that need not exist."""
    refused = xla_flags.unknown_to_tpu({**of("tpu"), "xla_tpu_made_up": "1", "xla_tpu_scoped_vmem_limit_kib": "much"})
    assert [text.split(" (")[0] for text in refused] == ["--xla_tpu_made_up=1", "--xla_tpu_scoped_vmem_limit_kib=much"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: gramjax[plan]")
def test_doctor_names_a_flag_that_libtpu_would_die_of(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_made_up=1 --xla_enable_async_all_gather=true")
    assert doctor.main([]) == 2
    said = capsys.readouterr().out.splitlines()
    assert "xla flags  LIBTPU_INIT_ARGS: --xla_tpu_made_up=1 --xla_enable_async_all_gather=true" in said
    (problem,) = [line for line in said if line.startswith("problem")]
    assert "LIBTPU_INIT_ARGS: the TPU compiler does not take --xla_tpu_made_up=1" in problem


def test_without_the_tpu_compiler_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda name: None)
    assert xla_flags.unknown_to_tpu(of("tpu")) is None and not xla_flags.check(of("tpu"), "tpu")


def test_the_table_says_each_flag_once_and_why():
    names = [flag.name for flag in xla_flags.TABLE]
    assert len(set(names)) == len(names) and all(flag.reason and flag.since for flag in xla_flags.TABLE)
    assert {flag.platform for flag in xla_flags.TABLE} == set(xla_flags.VARIABLES)


def test_the_page_on_launching_shows_the_table():
    page = (Path(__file__).parent.parent.parent / "launch" / "README.md").read_text()
    for flag in xla_flags.TABLE:
        assert f"| {flag.platform} | {flag.group} | `{flag.name}={flag.value}` | {flag.reason} |" in page
    assert sum(line.startswith(("| gpu", "| tpu", "| cpu")) for line in page.splitlines()) == len(xla_flags.TABLE)


def test_what_is_asked_for():
    both = xla_flags.chosen("recommended,deterministic", "gpu")
    assert both == of("gpu") and "xla_gpu_deterministic_ops" not in xla_flags.chosen("recommended", "gpu")
    own = xla_flags.chosen("--xla_a=1,2 --xla_b", "tpu")
    assert own == {"xla_a": "1,2", "xla_b": "true"} and xla_flags.parse(xla_flags.as_text(own)) == own
    with pytest.raises(UserError, match="the table has no such flag for tpu"):
        xla_flags.chosen("deterministic", "tpu")
    with pytest.raises(UserError, match="'fast' is neither"):
        xla_flags.chosen("fast", "gpu")


def test_report_says_what_is_set_otherwise_and_not_at_all():
    one, other, *rest = [flag for flag in xla_flags.TABLE if flag.platform == "gpu" and flag.group == "recommended"]
    text = f"--{one.name}={one.value} --{other.name}=odd --xla_dump_to=/x"
    said = xla_flags.lines(xla_flags.report({"XLA_FLAGS": text}, "gpu"))
    assert said[0] == f"XLA_FLAGS: {text}"
    (line,) = [line for line in said if line.startswith("recommended")]
    assert line.startswith(f"recommended: 2 of {len(rest) + 2} set, otherwise: {other.name}=odd (table: {other.value})")
    assert all(flag.name in line for flag in rest) and one.name not in line
    assert xla_flags.lines(xla_flags.report({}, "cpu"))[0] == "none set"
    quick = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
    assert xla_flags.lines(xla_flags.report(quick, "cpu"))[1:] == ["quick_compile: 1 of 1 set"] * len(of("cpu"))


def test_an_unknown_flag_ends_a_job_before_it_starts_jax(monkeypatch):
    """XLA would end the process; flags that are known to be taken cost no question."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1 --xla_gpu_made_up=1")
    with pytest.raises(UserError, match="^XLA_FLAGS: this XLA does not take --xla_gpu_made_up=1$"):
        runtime.start()
    monkeypatch.setattr(xla_flags, "unknown_to_xla", lambda given: pytest.fail(f"asked about {given}"))
    for known in ("", "--xla_force_host_platform_device_count=8", xla_flags.as_text(of("gpu") | of("cpu"))):
        xla_flags.check_environment({"XLA_FLAGS": known})


def test_another_number_of_devices_than_asked_for_ends_a_job():
    import jax

    count = jax.device_count()
    runtime.start(expected=count)
    with pytest.raises(UserError, match=f"^--devices={count + 1}, but JAX finds {count} x cpu: gramjax doctor"):
        runtime.start(expected=count + 1)
