"""`dptrain launch`: the package launch; a checkout also has it as `python -m launch`."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status."""
    from dptrain.launch.__main__ import main

    return main(arguments)
