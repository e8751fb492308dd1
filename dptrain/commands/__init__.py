"""The commands of `dptrain`: each is one module and one line below.

A module has `add_arguments(parser)` and `run(parsed, communicator, connection)`, which returns the exit status; it
imports NumPy only within `run`. A program with a command line of its own has `main(arguments)` instead.
"""

COMMANDS = {
    "data-prep": "pack images into a data set, or check a packed one",
    "train": "train a network on a packed data set",
    "launch": "start train, or another command, on several ranks",
    "eval": "measure loss and accuracy of a checkpoint on the test split",
    "inspect": "print what a checkpoint contains",
    "bench": "measure how fast this machine trains",
}
