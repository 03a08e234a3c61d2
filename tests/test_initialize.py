"""Starting values: bounds, moments and orthogonality, block by block."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rnnbench.initialize import Blocks, GlorotUniform, Normal, Orthogonal, Uniform
from rnnbench.streams import stream


@pytest.mark.parametrize("blocks", [1, 4])
def test_glorots_bound_is_of_one_block(blocks: int) -> None:
    """Of 4,000 draws per block the largest comes within 0.5% of the bound, but for a chance of e^-20."""
    drawn = GlorotUniform(blocks)(stream(0, "tests/glorot"), (blocks * 40, 100))
    bound = math.sqrt(6 / (100 + 40))
    for block in np.split(drawn, blocks):
        assert 0.995 * bound < np.abs(block).max() <= bound


@pytest.mark.parametrize("shape", [(6, 6), (6, 4), (4, 6)])
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_orthogonal_blocks_have_orthonormal_rows_or_columns(shape: tuple[int, int], gain: float) -> None:
    rows, columns = shape
    drawn = Orthogonal(3, gain)(stream(0, "tests/orthogonal"), (3 * rows, columns))
    parts = np.split(drawn, 3)
    for block in parts:
        product = block @ block.T if rows <= columns else block.T @ block
        np.testing.assert_allclose(product, gain**2 * np.eye(min(shape)), atol=1e-14)
    assert not np.allclose(parts[0], parts[1])


def test_orthogonal_matrices_are_uniformly_distributed() -> None:
    """Haar's trace has mean 0 and variance 1; that of LAPACK's bare factor has a mean below 0."""
    rng = stream(0, "tests/haar")
    traces = [np.trace(Orthogonal()(rng, (3, 3))) for _ in range(2000)]
    assert abs(np.mean(traces)) < 5 / math.sqrt(2000)
    assert abs(np.var(traces) - 1) < 0.2


def test_the_other_rules() -> None:
    rng = stream(0, "tests/rules")
    assert Blocks((1.0, 2.0))(rng, (4,)).tolist() == [1.0, 1.0, 2.0, 2.0]
    uniform, normal = Uniform(0.3)(rng, (4000,)), Normal(0.3)(rng, (4000,))
    assert 0.297 < np.abs(uniform).max() <= 0.3
    assert abs(np.std(normal) - 0.3) < 5 * 0.3 / math.sqrt(2 * 4000)
    assert abs(np.mean(normal)) < 5 * 0.3 / math.sqrt(4000)
