"""`python -m dptrain` is `dptrain`."""

import contextlib
import os
import sys

# `python -m` puts the working directory first, `dptrain` does not. A model file must find the same modules with both.
with contextlib.suppress(OSError):  # the working directory is gone
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109 - as Python has written it
        del sys.path[0]

from dptrain.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
