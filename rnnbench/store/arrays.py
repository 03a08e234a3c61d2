"""Named NumPy arrays to the bytes of a safetensors file and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.errors import CorruptData

DTYPES = frozenset(
    f"{kind}{bits}" for kind, widths in {"float": (16, 32, 64), "int": (8, 16, 32, 64)}.items() for bits in widths
) | {"uint8", "uint16", "uint32", "uint64", "bool", "complex64"}


def pack_arrays(arrays: Mapping[str, NDArray]) -> bytes:
    """Return the bytes of a safetensors file that holds `arrays`; the same arrays give the same bytes.

    Raises:
        TypeError: on a dtype that the format cannot hold (split complex128 into two, view bfloat16 as uint16).
    """
    from safetensors.numpy import save

    packed: dict[str, NDArray] = {}
    for name, array in arrays.items():
        if not isinstance(array, (np.ndarray, np.generic)) or array.dtype.name not in DTYPES:
            raise TypeError(f"array {name!r} is {getattr(array, 'dtype', type(array))}; known: {sorted(DTYPES)}")
        # np.ascontiguousarray would turn a scalar into a vector of one
        packed[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return bytes(save(packed))


def unpack_arrays(data: bytes, place: str) -> dict[str, NDArray]:
    """Return the arrays in the bytes of a safetensors file, writable and in native byte order.

    Raises:
        CorruptData: when it is no whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        loaded = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptData(f"{place}: no whole safetensors file; {' '.join(str(error).split())[:200]}") from None
    # frameworks warn about, or refuse, memory that may not be written to
    return {name: array if array.flags.writeable else array.copy() for name, array in sorted(loaded.items())}
