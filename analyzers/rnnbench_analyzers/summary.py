"""Runs in a table: one row an arm and backend, scores over its seeds, and how far the backends are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

FIRST_STEPS = 10
"""Training steps over which two backends' losses are compared: beyond, chaos parts trajectories that are both right."""


def summarize(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Sum up runs by arm and backend.

    Args:
        runs: a row a run, as `rnnbench.load_results(..., kind="runs")` gives; a column ``label`` names the arms.
        metrics: a row a (run, step, split, metric), as `rnnbench.load_results` gives.

    Returns:
        A row a (label, backend): ``runs``, ``metric``, ``better``, the ``median``, ``low`` and ``high`` of its final
        value over seeds (diverged runs count at the baseline), ``baseline`` (the best trivial predictor's value) with
        ``baseline_name``, ``solved`` runs and the ``median_steps_to_solve`` (of all runs, those that did not solve
        counting as infinite, so None unless more than half solved), ``diverged``, the median ``seconds``, and
        ``difference``, the largest relative difference of the training loss between backends over the first ten steps
        of all seeds, or NaN without a matched partner; ``same_inputs`` tells whether the partners' first batches were
        equal to the byte.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    partners = _differences(runs, metrics)
    for (label, backend), group in runs.groupby(["label", "backend"], sort=False, dropna=False):
        metric, better = group["metric"].iloc[0], group["better"].iloc[0]
        name, baseline = _best_baseline(group.iloc[0], metric, better)
        finals = _finals(group, metric, baseline)
        solving = group["steps_to_solve"].astype("Float64").fillna(np.inf).to_numpy(dtype=np.float64)
        median_solve = float(np.median(solving)) if len(solving) else np.inf
        difference, same = partners.get(str(label), (np.nan, None))
        rows.append(
            {
                "label": label,
                "backend": backend,
                "matched": bool(group["matched"].all()),
                "runs": len(group),
                "metric": metric,
                "better": better,
                "median": float(np.median(finals)) if len(finals) else np.nan,
                "low": float(np.min(finals)) if len(finals) else np.nan,
                "high": float(np.max(finals)) if len(finals) else np.nan,
                "baseline": baseline,
                "baseline_name": name,
                "solved": int(np.isfinite(solving).sum()),
                "stops": bool("stop.metric" in group and group["stop.metric"].notna().any()),
                "median_steps_to_solve": median_solve if np.isfinite(median_solve) else None,
                "diverged": int((group["status"] == "diverged").sum()),
                "seconds": float(group["total_s"].median()),
                "difference": difference,
                "same_inputs": same,
            }
        )
    return pd.DataFrame(rows)


def _best_baseline(run: pd.Series[Any], metric: str, better: str) -> tuple[str | None, float]:
    """Return the strongest trivial predictor of `metric`."""
    prefix = f"baseline.{metric}."
    found = {
        str(column).removeprefix(prefix): float(value)
        for column, value in run.items()
        if str(column).startswith(prefix) and value is not None and np.isfinite(value)
    }
    if not found:
        return None, np.nan
    name = (max if better == "higher" else min)(found, key=found.__getitem__)
    return name, found[name]


def _finals(group: pd.DataFrame, metric: str, baseline: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the final scores; a diverged run counts at the baseline's score."""
    column = f"summary.{metric}"
    if column not in group:
        return np.empty(0)
    values = group[column].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.where(group["status"] == "diverged", baseline, values)
    kept: np.ndarray[Any, np.dtype[np.float64]] = values[np.isfinite(values)].astype(np.float64)
    return kept


def _differences(runs: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, tuple[float, bool]]:
    """Return by label the largest early difference between backends, and whether first batches were equal."""
    found: dict[str, tuple[float, bool]] = {}
    early = metrics[(metrics["split"] == "train") & (metrics["metric"] == "loss") & (metrics["step"] <= FIRST_STEPS)]
    losses = {digest: part.set_index("step")["value"] for digest, part in early.groupby("digest")}
    matched = runs[runs["matched"].astype(bool)]
    for (label, _), group in matched.groupby(["label", "seed"], sort=False):
        known = [row for _, row in group.iterrows() if row["digest"] in losses]
        worst, same = found.get(str(label), (-np.inf, True))
        for index, run in enumerate(known):
            for other in known[index + 1 :]:
                if run["backend"] == other["backend"]:
                    continue
                a, b = losses[run["digest"]].align(losses[other["digest"]], join="inner")
                scale = np.maximum(np.abs(a), np.abs(b))
                relative = np.where(scale > 0, np.abs(a - b) / np.where(scale > 0, scale, 1.0), 0.0)
                # a loss that is not finite on one side alone is as far off as can be
                relative = np.where(np.isfinite(a) & np.isfinite(b), relative, 0.0)
                relative = np.where(np.isfinite(a) == np.isfinite(b), relative, np.inf)
                worst = max(worst, float(np.max(relative, initial=0.0)))
                same = same and run["first_batch_sha256"] == other["first_batch_sha256"]
        if worst >= 0:
            found[str(label)] = worst, same
    return found
