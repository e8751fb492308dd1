"""Which cases `launch/test.sh --quick` runs of a test that has many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

Case = type(pytest.param())


def quick_first(
    names: str | Sequence[str], cases: Iterable[Any], *, quick: int = 1, ids: Any = None
) -> pytest.MarkDecorator:
    """pytest.mark.parametrize, with the marker `slow` for all cases after the first `quick` ones."""
    several = not isinstance(names, str)
    chosen = []
    for number, case in enumerate(cases):
        more = [pytest.mark.slow] * (number >= quick)
        if isinstance(case, Case):
            chosen.append(pytest.param(*case.values, id=case.id, marks=[*case.marks, *more]))
        else:
            chosen.append(pytest.param(*(case if several else (case,)), marks=more))
    return pytest.mark.parametrize(names, chosen, ids=ids)


def examples(count: int, *suppress: HealthCheck) -> settings:
    """Settings of a test with `given`: `count` examples, a fifth of them in the profile `quick`; no time limit."""
    profile = settings()
    part = profile.max_examples / 100  # 100 are Hypothesis's default
    checks = [*profile.suppress_health_check, *suppress]
    return settings(max_examples=max(1, round(count * part)), deadline=None, suppress_health_check=checks)
