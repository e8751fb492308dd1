"""The commands of `dptrain`: each is one line below, and one module.

A module here has `add_arguments(parser)` and `run(parsed, communicator, connection)`, which returns the exit status; it
imports NumPy only within `run`. `EXAMPLES` is the end of its help. `prepare(parsed)`, if it has that, is called before
NumPy is imported. With `HANDLES_SIGNALS` the command handles signals itself; with `ADDS_HELP` it adds --help itself.
The modules of `PROGRAMS` have `main(arguments)` instead.
"""

COMMANDS = {
    "prep": "pack images into a data set, or check a packed one",
    "train": "train a network on a packed data set",
    "launch": "start train, or another command, on several ranks",
    "eval": "measure loss and accuracy of a checkpoint on a split",
    "predict": "name the classes of pictures",
    "inspect": "print what a checkpoint contains",
    "export": "write a checkpoint as ONNX, safetensors, .npz or .h5",
    "report": "write an HTML page of a run, or one that compares several",
    "bench": "measure how fast this machine trains",
    "doctor": "check whether this machine and its software can train",
    "completion": "print a script that completes commands and flags in a shell",
}
PROGRAMS = {
    "prep": "dptrain.data_prep.__main__",
    "launch": "dptrain.launch.__main__",
    "doctor": "dptrain.commands.doctor",
    "completion": "dptrain.commands.completion",
}
ALIASES = {"data-prep": "prep"}  # earlier names, which still work
