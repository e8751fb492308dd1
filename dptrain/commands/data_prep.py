"""`dptrain data-prep`: the package data_prep; a checkout also has it as `python -m data_prep`."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status."""
    from dptrain.data_prep.__main__ import main as data_prep

    return data_prep(arguments)
