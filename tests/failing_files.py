"""A file layer whose n-th call fails, like a full or broken disk while a checkpoint is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

CALLS = ("open", "write", "fsync", "replace", "close")


class FailingOS:
    """Stands for the module `os`: the `failing`-th of its file calls raises OSError(error), counted from 1.

    A write that fails writes half of its data first, as on a full disk. `made` lists the calls so far.
    """

    def __init__(self, failing: int, error: int) -> None:
        self.failing, self.error = failing, error
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.made.append(name)
            if len(self.made) != self.failing:
                return real(*arguments, **options)
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if name == "close":
                real(*arguments)
            raise OSError(self.error, os.strerror(self.error))

        return call

    @property
    def has_failed(self) -> bool:
        return len(self.made) >= self.failing
