"""Named random streams: every random number in rnnbench comes from one of these.

A stream is named by (seed, purpose, step), and its bit generator's state is a hash of that name. A run can therefore
start at any step, two backends draw the same bytes, and a new consumer of randomness never shifts an old one.
"""

from __future__ import annotations

import hashlib

import numpy as np

SEED_LIMIT = 2**32  # seeds at or above this alias in some frameworks (jax without x64 folds 2**32 to 0)
DERIVATION = "rnnbench-stream-v1"


def check_seed(place: str, seed: object) -> int:
    """Return `seed` as an int in [0, 2**32).

    Raises:
        BadInput: when it is not an integer of that range.
    """
    from rnnbench.errors import BadInput, quoted

    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < SEED_LIMIT:
        raise BadInput(f"{place}: seed {quoted(seed)} is not an integer from 0 to 2**32 - 1")
    return int(seed)


def stream(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """Open the stream (seed, purpose, step).

    The bit generator is Philox-4x64, keyed with the first 128 bits of SHA-256 over
    ``rnnbench-stream-v1|<seed>|<purpose>|<step>`` (little-endian), counter zero.

    Args:
        seed: 0 <= seed < 2**32.
        purpose: what the numbers are for, e.g. ``init/readout.weight`` or ``train``.
        step: position in the stream of batches, or any other non-negative index.
    """
    name = f"{DERIVATION}|{check_seed('stream', seed)}|{purpose}|{step}"
    digest = hashlib.sha256(name.encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
