"""Files, streams, signals and limits of the operating system. Imports only `dptrain.errors`."""
