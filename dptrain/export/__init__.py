"""Files with the values of a checkpoint for other programs. Each format is one file here, and one line below.

Read in this order: values, npz, small_checkpoint, pytorch, safetensors, onnx.
"""

# By the suffix of the file: the module, whose `content(checkpoint, rebuild)` returns the bytes of the file;
# `rebuild()` returns the network.
FORMATS = {
    ".onnx": "dptrain.export.onnx",
    ".safetensors": "dptrain.export.safetensors",
    ".npz": "dptrain.export.npz",
    ".h5": "dptrain.export.small_checkpoint",
}
