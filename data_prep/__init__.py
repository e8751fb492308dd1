"""Packing of image data into the shards that dptrain trains on."""

from dptrain.system.streams import write_to_stderr

# In a checkout this package is at the top level; installed, it is dptrain.data_prep.
PROGRAM = "data_prep" if __name__ == "data_prep" else "dptrain prep"


def report(text: str) -> None:
    """Write a line, beginning with the name of this program, to standard error."""
    write_to_stderr(f"{PROGRAM}: {text}")
