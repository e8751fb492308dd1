"""Packing of image data into the shards that dptrain trains on."""

# In a checkout this package is at the top level; installed, it is dptrain.data_prep.
PROGRAM = "data_prep" if __name__ == "data_prep" else "dptrain data-prep"
