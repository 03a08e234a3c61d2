"""A user's whole JAX model on a task: an unmatched arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.network import Forward, read_end
from rnnbench.errors import BadInput, quoted
from rnnbench.registry import load_attribute, one_line
from rnnbench.streams import stream
from rnnbench.tasks.base import Task
from rnnbench.xp import Ops


class JaxModel:
    """Stands in for a `rnnbench.cells.network.Network`: the same questions, answered by a pair of functions.

    ``build(n_in, n_out)`` returns (init, apply): ``init(key)`` gives a tree of parameters, and ``apply(params,
    inputs)`` maps inputs [time batch n_in] to outputs [time batch n_out], or, where the task reads the end only, also
    to [batch n_out].
    """

    def __init__(self, reference: str, task: Task, seed: int) -> None:
        self.read_last = task.readout == "last"
        self.n_out = task.n_out
        build = load_attribute(reference, "model")
        try:
            built = build(task.n_in, task.n_out)
        except Exception as error:
            raise BadInput(f"model: {reference}({task.n_in}, {task.n_out}) failed; {one_line(error)}") from error
        if not (isinstance(built, tuple) and len(built) == 2 and all(callable(part) for part in built)):
            raise BadInput(
                f"model: {reference} returned {quoted(type(built).__name__)}, not the functions (init, apply)"
            )
        init, self.apply = built
        key = jax.random.key(int(stream(seed, "user/init", 0).integers(2**31)))
        try:
            paths, self._structure = jax.tree_util.tree_flatten_with_path(init(key))
            leaves = [np.asarray(leaf) for _, leaf in paths]
        except Exception as error:
            raise BadInput(f"model: init of {reference} failed; {one_line(error)}") from error
        self._names = [jax.tree_util.keystr(path, simple=True, separator=".") or "value" for path, _ in paths]
        if len(set(self._names)) < len(self._names):  # {"a.b": ..., "a": {"b": ...}}
            self._names = [f"{name}.{number}" for number, name in enumerate(self._names)]
        self._start = dict(zip(self._names, leaves, strict=True))
        wrong = [name for name, leaf in self._start.items() if leaf.dtype.kind != "f"]
        if wrong or not paths:
            what = f"{quoted(wrong[0])}, which is no float" if wrong else "no parameters"
            raise BadInput(f"model: init of {reference} gives {what}")
        # runs of one model that differ by seed share what is compiled for it
        self._identity = (reference, build, task.n_in, task.n_out, self.read_last, self._structure)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JaxModel) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def initial(self, seed: int) -> dict[str, NDArray]:
        """Return the parameters as the user's init drew them, by their path in the tree."""
        return dict(self._start)

    def initial_buffers(self, seed: int) -> dict[str, NDArray]:
        """Return nothing: such a model has no buffers."""
        return {}

    def count(self) -> int:
        """Return the number of trainable numbers."""
        return sum(value.size for value in self._start.values())

    def forward(
        self,
        xp: Ops,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        inputs: Array,
        lengths: Array,
        *,
        training: bool,
        **options: Any,
    ) -> Forward:
        """Call the user's apply with the parameters in their tree."""
        tree = jax.tree_util.tree_unflatten(self._structure, [params[name] for name in self._names])
        outputs = self.apply(tree, inputs)
        if not (isinstance(outputs, jax.Array) and jax.numpy.issubdtype(outputs.dtype, jax.numpy.floating)):
            found = str(outputs.dtype) if isinstance(outputs, jax.Array) else type(outputs).__name__
            raise BadInput(f"model: its output is {quoted(found)}, not one array of floats")
        return Forward(read_end(xp, outputs, lengths, self.read_last, self.n_out), {}, {})
