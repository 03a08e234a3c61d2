"""A user's whole torch model on a task: an unmatched arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.network import Forward, read_end
from rnnbench.errors import BadInput, quoted
from rnnbench.registry import load_attribute, one_line
from rnnbench.streams import stream
from rnnbench.tasks.base import Task
from rnnbench.xp import Ops


class TorchModel:
    """Stands in for a `rnnbench.cells.network.Network`: the same questions, answered by a torch.nn.Module.

    ``build(n_in, n_out)`` returns a module that maps inputs [time batch n_in] to outputs [time batch n_out], or, where
    the task reads the end only, also to [batch n_out]. Parameters that need no gradient are kept as they are, as
    buffers are kept that only the module's own forward changes.
    """

    def __init__(self, reference: str, task: Task, seed: int) -> None:
        self.seed = seed
        self.read_last = task.readout == "last"
        self.n_out = task.n_out
        build = load_attribute(reference, "model")
        torch.manual_seed(self._seed("init", 0))
        try:
            self.module = build(task.n_in, task.n_out)
        except Exception as error:
            raise BadInput(f"model: {reference}({task.n_in}, {task.n_out}) failed; {one_line(error)}") from error
        if not isinstance(self.module, torch.nn.Module):
            raise BadInput(f"model: {reference} returned {quoted(type(self.module).__name__)}, not a torch.nn.Module")
        named = dict(self.module.named_parameters())
        kept = {
            **{name: value for name, value in named.items() if not value.requires_grad},
            **dict(self.module.named_buffers()),
        }
        self._start = {name: _array(reference, name, value) for name, value in named.items() if value.requires_grad}
        self._buffers = {name: _array(reference, name, value) for name, value in kept.items()}
        if not self._start:
            raise BadInput(f"model: {reference} has no parameters to train")

    def initial(self, seed: int) -> dict[str, NDArray]:
        """Return the parameters as the module drew them under a seed derived from the run's."""
        return dict(self._start)

    def initial_buffers(self, seed: int) -> dict[str, NDArray]:
        """Return the module's buffers, and its parameters that are not trained."""
        return dict(self._buffers)

    def count(self) -> int:
        """Return the number of trainable numbers."""
        return sum(value.size for value in self._start.values())

    def before_step(self, step: int) -> None:
        """Seed torch's own generator (dropout and the like) from the run's seed and the step, so that runs resume."""
        torch.manual_seed(self._seed("model", step))

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
        """Call the module with the given parameters; buffers that it changes are changed in a copy."""
        self.module.train(training)
        # functional_call writes what the module put in its buffers' places back into the table that it is given
        held = {**params, **{name: value.clone() for name, value in buffers.items()}}
        outputs = torch.func.functional_call(self.module, held, (inputs,))
        if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
            found = str(outputs.dtype) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise BadInput(f"model: its output is {quoted(found)}, not one tensor of floats")
        changed = {name: held[name] for name in buffers}
        return Forward(read_end(xp, outputs, lengths, self.read_last, self.n_out), {}, changed)

    def _seed(self, purpose: str, step: int) -> int:
        return int(stream(self.seed, f"user/{purpose}", step).integers(2**31))


def _array(reference: str, name: str, value: torch.Tensor) -> NDArray:
    """Return a copy of a parameter or buffer as an array.

    Raises:
        BadInput: when it has no values yet (a lazy module), or they are of a kind that NumPy has not.
    """
    try:
        array: NDArray = value.detach().cpu().numpy().copy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"model: {reference}: {quoted(name)} cannot be kept; {one_line(error)}") from error
    if value.requires_grad and array.dtype.kind != "f":
        raise BadInput(f"model: {reference}: {quoted(name)} is {value.dtype}; trained parameters are real floats")
    return array
