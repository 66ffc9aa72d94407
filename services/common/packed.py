"""The types of packed arrays in messages: little-endian, whatever the machine.

As objects, because numpy takes half a microsecond to read a type's name, at every use.
"""

from __future__ import annotations

import numpy as np

I2, U2, U4, U8, F4, F8 = (np.dtype(f"<{name}") for name in ("i2", "u2", "u4", "u8", "f4", "f8"))
