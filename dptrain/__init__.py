"""dptrain: data-parallel training of convolutional networks on CPUs. See README.md."""

__version__ = "0.2.0"
