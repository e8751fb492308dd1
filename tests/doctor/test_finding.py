"""dptrain.doctor.finding: a check that raises an exception is a failure of that check alone."""

from __future__ import annotations

from dptrain.doctor.finding import FAILURE, OK, Check, Finding, fact, failure, ok, run_all


def test_an_exception_is_a_failure_with_its_text_and_the_other_checks_run() -> None:
    def broken() -> Finding:
        raise RuntimeError("first line\nsecond \x1b line")

    checks = [
        Check("one", lambda: ok("well", size=3), ""),
        Check("two", broken, "repair it"),
        Check("three", broken, ""),
    ]
    first, second, third = run_all(checks)
    assert (first.check, first.result, first.found) == ("one", OK, "well")
    assert (second.check, second.result, second.remedy) == ("two", FAILURE, "repair it")
    assert second.found == r"RuntimeError: first line second \x1b line"
    assert third.check == "three"


def test_a_fact_is_found_by_its_name() -> None:
    findings = [ok("a"), failure("b", "c", size=3), ok("d", size=4)]
    assert fact(findings, "size") == 3
    assert fact(findings, "other") is None
