"""Reading ``.npy`` files as if anyone could have written them."""

from tokenize import TokenError
from typing import IO

import numpy as np


def read_array(file: IO[bytes]) -> np.ndarray:
    """Return the array of an ``.npy`` file; nothing in it is unpickled.

    Raises ValueError for what is no such file, holds Python objects, or claims to be larger than memory.
    """
    try:
        # Not np.load, which looks for zip archives and pickles as well.
        return np.lib.format.read_array(file, allow_pickle=False)
    except (TokenError, MemoryError) as error:  # TokenError: a header with an open bracket (seen in numpy 2.4.6)
        raise ValueError(str(error)) from None
