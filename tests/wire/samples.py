"""One manifest with a bit of everything, and values for it."""

import numpy as np
import pytest

from anabranch.errors import Refused
from anabranch.wire.tensors import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("bn.mean", (3,), "buffer"),
        TensorSpec("fc.bias", (), "trainable"),
        TensorSpec("fc.weight", (2, 3), "trainable"),
        TensorSpec("none", (0, 4), "trainable"),
    )
)
ARRAYS = {
    "bn.mean": np.array([9, 9, 9], np.float32),
    "fc.bias": np.array(2, np.float32),
    "fc.weight": np.array([[1, 1, 1], [1, 4, 0]], np.float32),
    "none": np.empty((0, 4), np.float32),
}


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.code
