"""Array types shared by everything that touches numbers."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = Any
"""An array of whichever framework `xp` stands for: numpy.ndarray, torch.Tensor or jax.Array."""

NDArray: TypeAlias = npt.NDArray[Any]
"""A NumPy array of any dtype."""
