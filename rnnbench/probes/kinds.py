"""The catalogue: every kind of signal that the project's own probes record.

Axes: ``time`` runs over the sequence's steps t = 0..T-1, ``batch`` over the probed sequences, ``lag`` over distances in
steps, ``rank`` over singular values or exponents in descending order, ``unit`` over a state's entries. Logarithms are
natural; -inf is the logarithm of an exact zero. A state's full name is ``<scope>.<state>``, e.g.
``layers.0.forward.h``; a system is what has a Jacobian: ``network`` for a whole stack that reads forward, else a scope.
"""

from __future__ import annotations

from rnnbench.signals import SignalKind

_REPLAY = "about one training step"

ADJOINT = (
    SignalKind(
        "adjoint.log_norm",
        ("time", "batch"),
        "ln",
        "norm of the total derivative of the training loss by a state at each t, the step's other states held",
        _REPLAY,
        of="state",
    ),
    SignalKind(
        "adjoint.total_log_norm",
        ("time", "batch"),
        "ln",
        "the same, followed through the step's later states too (an LSTM's c through h); only where the two differ",
        "none beyond adjoint.log_norm",
        of="state",
    ),
    SignalKind(
        "adjoint.input_log_norm",
        ("time", "batch"),
        "ln",
        "norm of the derivative of the training loss by the input at each t: comparable across cells",
        "none beyond adjoint.log_norm",
    ),
    SignalKind(
        "adjoint.seen_log_norm",
        ("time", "batch"),
        "ln",
        "adjoint.log_norm as plain backpropagation in the run's own precision gives it, run at the size that a "
        "gradient has in a batch of the run's size, and brought back to the probed sequences' loss",
        _REPLAY,
        of="state",
    ),
    SignalKind(
        "adjoint.censored",
        ("time", "batch"),
        "",
        "1 where the run's own precision, at the size that a gradient has in a batch of the run's size, reads zero, "
        "less than its smallest normal number, or no finite number, while adjoint.log_norm is finite",
        "none beyond adjoint.seen_log_norm",
        of="state",
    ),
    SignalKind(
        "adjoint.step_log_norm",
        ("time", "batch"),
        "ln",
        "adjoint.log_norm of the loss at the one step adjoint.loss_step; only for a loss at each step",
        _REPLAY,
        of="state",
    ),
    SignalKind("adjoint.loss_step", (), "steps", "the chosen step whose loss or output is followed back", "none"),
    SignalKind(
        "adjoint.logit_log_norm",
        ("time", "batch"),
        "ln",
        "Frobenius norm of the Jacobian of the outputs at adjoint.loss_step by a state at t, over that by the whole "
        "state of the same recurrence at adjoint.loss_step, for each sequence by itself",
        "as many backward passes as outputs, at most 16 drawn directions",
        of="state",
    ),
    SignalKind(
        "adjoint.logit_input_log_norm",
        ("time", "batch"),
        "ln",
        "Frobenius norm of the Jacobian of the outputs at adjoint.loss_step by the input at t",
        "none beyond adjoint.logit_log_norm",
    ),
    SignalKind(
        "adjoint.vector",
        ("time", "batch", "unit"),
        "loss per unit of state",
        "the total derivative itself, as a float64 can hold it; only on request",
        "memory: T x batch x state",
        of="state",
    ),
)

POINTS = (
    SignalKind("points.at", ("point",), "steps", "the steps t of points.log_norm", "none"),
    SignalKind(
        "points.log_norm",
        ("point", "batch"),
        "ln",
        "adjoint.log_norm at some steps only, by plain backpropagation in the run's own precision and on its own path, "
        "through fused layers too, which are run in pieces",
        "little more than one training step",
        of="state",
    ),
)

PROPAGATOR = (
    SignalKind("propagator.lags", ("lag",), "steps", "the lags of the other propagator signals", "none"),
    SignalKind(
        "propagator.origins",
        ("origin",),
        "steps",
        "the steps t that the propagators start from, counted in the system's order of reading",
        "none",
    ),
    SignalKind(
        "propagator.log_norm",
        ("origin", "lag", "batch"),
        "ln",
        "largest singular value of the full-state Jacobian ds_{t+lag}/ds_t; an estimate from below by block power "
        "iteration for a large state",
        "one forward pass a state entry",
        of="system",
    ),
    SignalKind(
        "propagator.log_singular_values",
        ("origin", "lag", "batch", "rank"),
        "ln",
        "all its singular values, descending; NaN below rounding's floor of the largest; only for a small state",
        "none beyond propagator.log_norm",
        of="system",
    ),
    SignalKind(
        "propagator.log_frobenius",
        ("origin", "lag", "batch"),
        "ln",
        "its Frobenius norm: exact for a small state, by seeded random probing for a large one",
        "none beyond propagator.log_norm",
        of="system",
    ),
    SignalKind(
        "propagator.log_frobenius_error",
        ("origin", "lag", "batch"),
        "ln",
        "standard error of propagator.log_frobenius; 0 where exact",
        "none",
        of="system",
    ),
    SignalKind(
        "propagator.block_log_norm",
        ("origin", "lag", "batch"),
        "ln",
        "Frobenius norm of one block, named <system>:<to><<from>: the effect of one named state on another",
        "none beyond propagator.log_norm",
        of="block",
    ),
)

SPECTRUM = (
    SignalKind(
        "spectrum.exponents",
        ("batch", "rank"),
        "1/step",
        "finite-time Lyapunov exponents along each sequence, descending, by QR at every step",
        "one forward pass an exponent",
        of="system",
    ),
    SignalKind(
        "spectrum.local",
        ("time", "batch"),
        "1/step",
        "local expansion rate: what step t adds to the largest exponent's sum",
        "none beyond spectrum.exponents",
        of="system",
    ),
    SignalKind(
        "spectrum.log_det",
        ("time", "batch"),
        "1/step",
        "ln of the absolute determinant of the step's Jacobian; only where all exponents are computed",
        "one LU factorization a step",
        of="system",
    ),
    SignalKind(
        "spectrum.sum_error",
        ("batch",),
        "1/step",
        "sum of all exponents less the mean of spectrum.log_det: zero but for rounding",
        "none",
        of="system",
    ),
    SignalKind("spectrum.radius", (), "", "spectral radius of a recurrent weight block", "none", of="parameter"),
    SignalKind(
        "spectrum.departure",
        (),
        "",
        "departure from normality (Henrici): sqrt(|W|_F^2 - sum |eigenvalue|^2) / |W|_F",
        "none",
        of="parameter",
    ),
)

LAGS = (
    SignalKind(
        "lags.share",
        ("lag",),
        "",
        "signed share of a parameter's gradient that comes from its use at this distance from the loss; sums to one; "
        "where four replays cannot hold a model, of fewer loss steps, and if need be of every k-th row only",
        "one backward pass a chosen loss step, at most four times",
        of="parameter",
    ),
    SignalKind(
        "lags.log_norm",
        ("lag",),
        "ln",
        "norm of the part of the parameter's gradient from this distance; where only every k-th row was followed, "
        "estimated from those",
        "none beyond lags.share",
        of="parameter",
    ),
    SignalKind(
        "lags.beyond_log_norm",
        ("lag",),
        "ln",
        "norm of the sum of the parts from this distance and beyond, which backpropagation that stops short of it "
        "lacks; at lag 0 that of the whole gradient, which the shares are of; estimated where lags.log_norm is",
        "none beyond lags.share",
        of="parameter",
    ),
)

ACTIVITY = (
    SignalKind(
        "activity.low",
        ("time",),
        "",
        "share of a gate's or unit's values in the lowest twentieth of its range, over units and sequences",
        "one forward pass",
        of="tap",
    ),
    SignalKind(
        "activity.high", ("time",), "", "share in the highest twentieth of its range", "one forward pass", of="tap"
    ),
    SignalKind(
        "activity.time_constant",
        ("unit",),
        "steps",
        "-1 / mean(ln f) of a gate f that says which part of a state is kept",
        "one forward pass",
        of="tap",
    ),
    SignalKind(
        "activity.dead",
        ("unit",),
        "",
        "1 for a unit whose state never changes, over all sequences and steps",
        "one forward pass",
        of="state",
    ),
    SignalKind(
        "activity.state_norm",
        ("time", "batch"),
        "",
        "Euclidean norm of a state",
        "one forward pass",
        of="state",
    ),
)

UPDATES = (
    SignalKind(
        "updates.grad_norm",
        ("update",),
        "",
        "norm of each training step's gradient since the last recorded step, before any technique",
        "one reduction of the gradient a step",
    ),
    SignalKind(
        "updates.acted",
        ("update",),
        "",
        "1 where a technique of the gradient stage changed that step's gradient",
        "one comparison a step",
        of="technique",
    ),
)

NOISE = (
    SignalKind(
        "noise.scale",
        (),
        "sequences",
        "simple gradient noise scale tr(Sigma)/|G|^2 between minibatches; not a number where |G|^2 is not resolved",
        "one training step a minibatch",
    ),
    SignalKind(
        "noise.interval",
        ("bound",),
        "sequences",
        "its 95 % interval by the jackknife; infinite above where zero is not excluded",
        "none",
    ),
    SignalKind("noise.batch", (), "sequences", "the size of the minibatches", "none"),
)

USE = (
    SignalKind("use.lags", ("lag",), "steps", "the lags of the other use signals", "none"),
    SignalKind(
        "use.output_change",
        ("lag",),
        "",
        "root mean square change of the output at adjoint's chosen step when all inputs at this lag and beyond come "
        "from another sequence, over that when the whole history does",
        "one forward pass a lag",
    ),
    SignalKind(
        "use.single_change",
        ("lag",),
        "",
        "the same when the one input at this lag comes from another sequence",
        "one forward pass a lag",
    ),
    SignalKind(
        "use.loss",
        ("lag",),
        "loss",
        "the loss at that step when all inputs at this lag and beyond are exchanged",
        "none",
    ),
    SignalKind("use.base_loss", (), "loss", "the loss at that step with nothing exchanged", "one forward pass"),
)

KINDS = {
    kind.name: kind for kind in (*ADJOINT, *POINTS, *PROPAGATOR, *SPECTRUM, *LAGS, *ACTIVITY, *UPDATES, *NOISE, *USE)
}
"""Every kind by name."""
