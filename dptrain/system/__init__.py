"""What the operating system gives: files, streams, signals. Imports only `dptrain.errors`."""
