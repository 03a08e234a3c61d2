"""Pictures: what is drawn is what was recorded, every arm is named, and all text lies inside, in full and readable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rnnbench.evidence import Evidence, Observed
from rnnbench.signals import Signal, Signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LN10 = float(np.log(10.0))
BATCH = 4


def signal(name: str, axes: str, values: Any, step: int = 0) -> Signal:
    return Signal(name, tuple(axes.split()), "", step, np.asarray(values, dtype=np.float64))


def an_arm(
    name: str = "rnn torch",
    make: Callable[[int, int, np.random.Generator], list[Signal]] = lambda seed, step, draws: [],
    seeds: int = 1,
    steps: Sequence[int] = (0, 1000),
    length: int = 100,
    lag: int | None = 80,
    **spec: Any,
) -> Evidence:
    """Return an arm whose signals `make` gives for each seed and training step."""
    runs = []
    for seed in range(seeds):
        draws = np.random.default_rng(seed)
        recorded = [one for step in steps for one in make(seed, step, draws)]
        runs.append(Observed(f"{seed:064x}", seed, "completed", steps[-1], signals=Signals(recorded)))
    task = {"name": "adding", "T": length}
    return Evidence(name, tuple(runs), "adding", length, lag, spec={"cell": name, "task": task, **spec})


def gradients(
    rate: float, length: int, noise: float = 0.0, floor: float | None = None, trained: float | None = None
) -> Callable[[int, int, np.random.Generator], list[Signal]]:
    """Return what records a loss gradient of exp(rate lag) at state h, and what a precision with a floor [ln] sees."""

    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        slope = rate if step == 0 or trained is None else trained
        lags = np.arange(length)[::-1, None]
        walk = np.cumsum(noise * draws.standard_normal((length, BATCH)), axis=0)[::-1]
        values = -3.0 + slope * lags + 0.1 * seed + walk - walk[-1]
        made = [
            signal("adjoint.log_norm/layers.0.forward.h", "time batch", values, step),
            signal("adjoint.input_log_norm", "time batch", values - 0.5, step),
        ]
        if floor is not None:
            seen = np.where(values < floor, -np.inf, values)
            made.append(signal("adjoint.seen_log_norm/layers.0.forward.h", "time batch", seen, step))
        return made

    return make


def spectra(top: float, ranks: int = 16, noise: float = 0.0) -> Callable[[int, int, np.random.Generator], list[Signal]]:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        values = top - 0.05 * np.arange(ranks) ** 1.3 + noise * draws.standard_normal((BATCH, 1)) + 0.05 * (step > 0)
        return [signal("spectrum.exponents/network", "batch rank", values, step)]

    return make


def gates(
    names: Sequence[str] = ("i", "f", "g", "o"), scopes: int = 1, noise: float = 0.0
) -> Callable[..., list[Signal]]:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        made = []
        for layer in range(scopes):
            for index, name in enumerate(names):
                tap = f"layers.{layer}.forward.{name}"
                share = np.clip(0.12 * index + 0.1 * np.log1p(step) + noise * draws.standard_normal(50), 0.0, 1.0)
                made += [
                    signal(f"activity.high/{tap}", "time", share, step),
                    signal(f"activity.low/{tap}", "time", 0.5 * share, step),
                ]
        return made

    return make


def propagators(
    top: float, ranks: int = 16, length: int = 100, noise: float = 0.0, floor: float | None = None
) -> Callable[[int, int, np.random.Generator], list[Signal]]:
    """Return what records singular values exp(rate_k lag) and their exponents."""

    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        lags = np.unique(np.geomspace(1, length - 1, 20).astype(int))
        rates = top - 0.01 * np.arange(ranks)
        jitter = noise * draws.standard_normal((2, len(lags), BATCH, 1))
        values = rates * lags[None, :, None, None] + 0.3 - 0.05 * np.arange(ranks) + jitter
        if floor is not None:
            values = np.where(values < values[..., :1] + floor, np.nan, values)
        return [
            signal("propagator.lags", "lag", lags, step),
            signal("propagator.origins", "origin", [0, 10], step),
            signal("propagator.log_singular_values/network", "origin lag batch rank", values, step),
            signal("propagator.log_norm/network", "origin lag batch", values[..., 0], step),
            signal("spectrum.exponents/network", "batch rank", np.tile(rates, (BATCH, 1)), step),
        ]

    return make


def reaching(
    reach: int, use: int, length: int, noise: float = 0.0
) -> Callable[[int, int, np.random.Generator], list[Signal]]:
    """Return what records an input gradient that has 1e-3 left at lag `reach`, and a use of 0.05 at lag `use`."""

    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        slope = np.log(1e-3) / (reach + 0.5 + 2 * seed)
        lags = np.arange(length)[::-1, None] * np.ones(BATCH)
        probed = np.unique([0, *np.geomspace(1, length - 1, 12).astype(int)])
        change = np.exp(np.log(0.05) * probed / (use + seed))
        return [
            signal("adjoint.logit_input_log_norm", "time batch", 2.0 + slope * lags, step),
            signal("use.lags", "lag", probed, step),
            signal("use.output_change", "lag", change, step),
        ]

    return make


def contributions(
    rate: float, length: int, norm: float = 0.2, trained: float | None = None
) -> Callable[[int, int, np.random.Generator], list[Signal]]:
    """Return what records parts of exp(rate lag) that add up, without any cancelling, to a gradient of a norm."""

    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        slope = rate if step == 0 or trained is None else trained
        parts = slope * np.arange(length) * (1 + 0.1 * seed)
        parts += np.log(norm) - np.logaddexp.reduce(parts)
        of = "layers.0.forward.weight_hh"
        return [
            signal(f"lags.log_norm/{of}", "lag", parts, step),
            signal(f"lags.beyond_log_norm/{of}", "lag", np.logaddexp.accumulate(parts[::-1])[::-1], step),
        ]

    return make


MAKERS: dict[str, Callable[[int], Callable[..., list[Signal]]]] = {
    "profile": lambda index: gradients(-0.3 / (index + 1), 60, 0.02, floor=-9.0, trained=-0.05 / (index + 1)),
    "heatmap": lambda index: gradients(-0.3 / (index + 1), 60, 0.02),
    "singular_values": lambda index: propagators(-0.1 / (index + 1), 6, 60, 0.1, floor=-9.0),
    "exponents": lambda index: spectra(0.2 - 0.1 * index, 8, 0.02),
    "saturation": lambda index: gates(("r", "z", "n") if index % 2 else ("i", "f", "g", "o"), 1 + index % 2, 0.02),
    "reach": lambda index: reaching(5 + 5 * index, 4 + 5 * index, 60),
    "lags": lambda index: contributions(-0.8 / (index + 1), 60, trained=-0.1 / (index + 1)),
}


def draw(picture: str) -> Callable[[Sequence[Evidence]], Figure | None]:
    from importlib import import_module

    found: Callable[[Sequence[Evidence]], Figure | None] = import_module(f"rnnbench_analyzers.pictures.{picture}").draw
    return found


def drawn(picture: str, evidence: Sequence[Evidence]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw(picture)(evidence)
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    return figure


def named_lines(axes: Any, label: str) -> list[Any]:
    return [line for line in axes.lines if line.get_label() == label]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for legend in figure.legends for text in legend.get_texts()]


def all_texts(figure: Figure) -> str:
    from matplotlib.text import Text

    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


@pytest.mark.parametrize("picture", MAKERS)
def test_without_its_signals_there_is_no_picture(picture: str) -> None:
    other = an_arm("rnn", lambda seed, step, draws: [signal("noise.scale", "", 3.0, step)])
    assert draw(picture)([]) is None
    assert draw(picture)([an_arm("rnn"), other]) is None
    figure = draw(picture)([other, an_arm("lstm", MAKERS[picture](0), length=60)])
    assert figure is not None


def test_every_registered_picture_of_evidence_is_tested_here() -> None:
    from rnnbench.registry import BUILT_IN

    files = {place.partition(":")[0].rpartition(".")[2] for place in BUILT_IN["pictures"].values()}
    assert files == {*MAKERS, "curves"}


LONG = "lstm with $a_long$ name, clip_norm(max_norm=1.0), chrono initialization and_an_unbreakable_" + "w" * 70
SHAPES: dict[str, dict[str, Any]] = {
    "one arm, one seed, one step": {"names": ["rnn torch"], "seeds": 1, "steps": [0]},
    "eight arms": {
        "names": ["rnn torch", "rnn jax", LONG, "_gru", "$x", "日本 rnn", "irnn", "linear"],
        "seeds": 2,
        "steps": [0, 10, 1000],
    },
    "ten seeds, twelve steps": {
        "names": [LONG, "rnn"],
        "seeds": 10,
        "steps": [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("picture", MAKERS)
def test_all_is_inside_apart_readable_and_named(picture: str, shape: str) -> None:
    from matplotlib.text import Text

    given = dict(SHAPES[shape])
    names = given.pop("names")
    evidence = [
        an_arm(name, MAKERS[picture](index), length=60, lag=50, **given, backend="jax" if "jax" in name else "torch")
        for index, name in enumerate(names)
    ]
    figure = drawn(picture, evidence)
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.size
    assert figure.get_figwidth() <= 6.75
    boxes = {f"legend {n}": legend.get_window_extent(renderer) for n, legend in enumerate(figure.legends)}
    visible = [axes for axes in figure.axes if axes.get_visible()]
    boxes |= {f"panel {n}": axes.get_tightbbox(renderer) for n, axes in enumerate(visible)}
    for place, box in boxes.items():
        assert box.x0 >= -0.5, place
        assert box.y0 >= -0.5, place
        assert box.x1 <= width + 0.5, place
        assert box.y1 <= height + 0.5, place
    known = list(boxes.items())
    for index, (place, box) in enumerate(known):
        for other, another in known[index + 1 :]:
            across = min(box.x1, another.x1) - max(box.x0, another.x0)
            along = min(box.y1, another.y1) - max(box.y0, another.y0)
            assert min(across, along) < 2.0, f"{place} lies on {other}"
    for text in figure.findobj(Text):
        assert not text.get_text().strip() or text.get_fontsize() >= 7.0, text.get_text()
    shown = "".join(all_texts(figure).split())
    for name in names:
        assert "".join(name.replace("日本", "??").split()) in shown


def broken(make: Callable[..., list[Signal]]) -> Callable[..., list[Signal]]:
    """Return a maker whose second half in time is exactly zero, with single values that are no numbers."""

    def worse(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        made = []
        for one in make(seed, step, draws):
            values = one.values.copy()
            if values.ndim and not one.name.endswith((".lags", ".origins")):
                values[: len(values) // 2] = -np.inf
                values.flat[-1] = np.nan
                values.flat[len(values) // 2] = np.inf
            made.append(Signal(one.name, one.axes, one.unit, one.step, values))
        return made

    return worse


@pytest.mark.parametrize("picture", MAKERS)
def test_values_that_are_no_numbers_break_nothing(picture: str) -> None:
    arms = [an_arm("rnn", broken(MAKERS[picture](0)), 3, length=60), an_arm("lstm", MAKERS[picture](1), 3, length=60)]
    drawn(picture, arms)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("picture", MAKERS)
def test_nothing_but_values_that_are_no_numbers_breaks_nothing(picture: str, value: float) -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        recorded = MAKERS[picture](0)(seed, step, draws)
        kept = (".lags", ".origins")
        return [
            one if one.name.endswith(kept) else Signal(one.name, one.axes, "", step, np.full_like(one.values, value))
            for one in recorded
        ]

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw(picture)([an_arm("rnn", make, 2, length=60)])
    if figure is not None:
        FigureCanvasAgg(figure).draw()


def test_an_arm_is_told_by_colour_and_marker_and_its_backend_by_the_filling() -> None:
    from rnnbench_analyzers.pictures import style

    names = [f"cell {n}" for n in range(30)]
    arms = style.arms(
        an_arm(f"{name} {backend}", cell=name, backend=backend) for name in names for backend in ("torch", "jax")
    )
    looks = [(arm.colour, arm.marker, arm.filled) for arm in arms]
    assert len(set(looks)) == len(arms)
    assert len({arm.marker for arm in arms[:16]}) == 8  # eight arms without any colour
    assert [arm.filled for arm in arms[:4]] == [True, False, True, False]
    assert arms[0].colour == arms[1].colour
    assert arms[0].marker == arms[1].marker


@pytest.mark.parametrize(
    ("exponent", "text"), [(0, "1"), (-1, "0.1"), (-2, "0.01"), (-3, "1e-3"), (2, "100"), (6, "1e6"), (-868, "1e-868")]
)
def test_powers_are_written_without_small_superscripts(exponent: int, text: str) -> None:
    from rnnbench_analyzers.pictures import style

    assert style.power(exponent) == text


def test_medians_and_quantiles_take_zeros_as_the_least_and_skip_what_is_missing() -> None:
    from rnnbench_analyzers.pictures import style

    table = np.array([[1.0, -np.inf, np.nan], [3.0, -np.inf, np.nan], [np.nan, 5.0, np.nan], [np.inf, 7.0, np.nan]])
    np.testing.assert_array_equal(style.median(table), [2.0, -np.inf, np.nan])
    np.testing.assert_array_equal(style.quantile(table, 1.0), [3.0, 7.0, np.nan])
    np.testing.assert_array_equal(style.quantile(table, 0.0), [1.0, -np.inf, np.nan])


def test_text_is_broken_at_words_and_never_lost() -> None:
    from rnnbench_analyzers.pictures import style

    broken_up = style.wrapped(f"some words and {'x' * 90} more", 100.0, 7.0)
    assert "".join(broken_up.split()) == f"somewordsand{'x' * 90}more"
    assert all(style.measure(line, 7.0) <= 100.0 for line in broken_up.split("\n"))
    assert style.wrapped("", 100.0, 7.0) == ""


def test_the_profile_is_the_gradient_by_lag_with_its_fit_and_thresholds() -> None:
    arm = an_arm("rnn", gradients(-0.2, 60, trained=-0.05), seeds=3, length=60, lag=50)
    figure = drawn("profile", [arm])
    before, after = figure.axes
    assert before.get_title() == "adding, T 60: before training"
    assert after.get_title() == "adding, T 60: after 1,000 training steps"
    for axes, rate in ((before, -0.2), (after, -0.05)):
        (line,) = named_lines(axes, "rnn")
        np.testing.assert_allclose(line.get_xdata(), np.arange(60))
        # relative to lag 0 all seeds are alike
        np.testing.assert_allclose(line.get_ydata(), rate * np.arange(60) / LN10, atol=1e-12)
        (fit,) = named_lines(axes, "fit")
        slope = np.diff(fit.get_ydata()) / np.diff(fit.get_xdata())
        np.testing.assert_allclose(slope, rate / LN10, rtol=1e-6)
        level = [line for line in axes.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0]
        assert [float(line.get_ydata()[0]) for line in level] == [-3.0]
        need = [line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]
        assert [float(line.get_xdata()[0]) for line in need] == [50.0]
        assert not named_lines(axes, "seen")
        assert any("task needs 50" in text.get_text() for text in axes.texts)
        assert any("horizon: 1e-3 left" in text.get_text() for text in axes.texts)
    assert any(text.startswith("rnn: half-life 3.5 steps (−0.2/step) → half-life 14") for text in legend_texts(figure))


def test_the_profile_is_of_the_median_over_seeds_in_a_band_of_all() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        values = -(0.1, 0.2, 0.6)[seed] * np.arange(30)[::-1, None] * np.ones(BATCH)
        return [signal("adjoint.log_norm/layers.0.forward.h", "time batch", values, step)]

    figure = drawn("profile", [an_arm("rnn", make, seeds=3, steps=(0,), length=30)])
    (axes,) = figure.axes
    (line,) = named_lines(axes, "rnn")
    np.testing.assert_allclose(line.get_ydata(), -0.2 * np.arange(30) / LN10)
    (band,) = axes.collections
    (path,) = band.get_paths()
    at_end = path.vertices[path.vertices[:, 0] == 29][:, 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [-0.6 * 29 / LN10, -0.1 * 29 / LN10])


def test_underflow_is_marked_where_the_precision_reads_nothing() -> None:
    # exp(-3 - 0.5 lag) falls below exp(-13.2) after lag 20
    figure = drawn("profile", [an_arm("rnn", gradients(-0.5, 60, floor=-13.2), steps=(0,), length=60)])
    (axes,) = figure.axes
    (cross,) = named_lines(axes, "gone")
    np.testing.assert_allclose(cross.get_xdata(), [20])
    np.testing.assert_allclose(cross.get_ydata(), [-10.0 / LN10])
    assert any("float32 reads none from lag 21 on" in text for text in legend_texts(figure))
    assert "float32 reads no number beyond" in legend_texts(figure)


def test_a_line_that_leaves_the_profile_is_pointed_after() -> None:
    figure = drawn("profile", [an_arm("rnn", gradients(-3.0, 60), steps=(0,), length=60)])
    (axes,) = figure.axes
    (arrow,) = named_lines(axes, "leaves")
    assert float(arrow.get_xdata()[0]) == np.ceil(48 * LN10 / 3.0)
    assert axes.get_ylim()[0] < -48 < axes.get_ylim()[1]
    assert "goes on below" in legend_texts(figure)


@pytest.mark.parametrize("model", ["exponential", "power", "neither"])
def test_the_drawn_law_is_the_fitted_one(model: str) -> None:
    from rnnbench_analyzers.pictures.profile import law, phrase

    from rnnbench.stats import Decay, Interval

    def interval(value: float) -> Interval:
        return Interval(value, value - 0.01, value + 0.01, 0.95, 3)

    fit = Decay(
        model=model,
        rate=interval(-0.1),
        half_life=6.93 if model == "exponential" else None,
        doubling=None,
        exponent=interval(1.5) if model == "power" else None,
        horizon=None,
        horizon_by_seed=(None,),
        left=1e-3,
        lags=40,
        used=(2, 39),
        p_exponential=0.5,
        p_power=0.5,
        misfit_exponential=0.0,
        misfit_power=0.0,
        autocorrelation=0.0,
    )
    lags = np.arange(40)
    middle = 0.7 + (-1.5 * np.log1p(lags) if model == "power" else -0.1 * lags)
    found = law(fit, middle)
    if model == "neither":
        assert found is None
        assert phrase(fit) == "no single law"
        return
    assert found is not None
    np.testing.assert_array_equal(found[0], np.arange(2, 40))
    np.testing.assert_allclose(found[1], middle[2:], atol=1e-12)
    assert phrase(fit) == {"exponential": "half-life 6.9 steps (−0.1/step)", "power": "(1 + lag)^−1.5"}[model]


def test_the_heat_map_holds_the_medians_and_the_horizon() -> None:
    arm = an_arm("rnn", gradients(-0.5, 40, trained=-0.25), seeds=3, steps=(0, 10, 100), length=40, lag=30)
    figure = drawn("heatmap", [arm])
    axes = figure.axes[0]
    (mesh,) = axes.collections
    expected = np.outer([-0.5, -0.25, -0.25], np.arange(40)) / LN10
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 40), expected, atol=1e-12)
    (horizon,) = named_lines(axes, "horizon")
    # 3 ln 10 / 0.5 = 13.8 and / 0.25 = 27.6 steps
    np.testing.assert_array_equal(horizon.get_xdata(), [14, 14, 28, 28, 28, 28])
    np.testing.assert_array_equal(horizon.get_ydata(), [-0.5, 0.5, 0.5, 1.5, 1.5, 2.5])
    (need,) = named_lines(axes, "need")
    assert float(need.get_xdata()[0]) == 30
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "10", "100"]
    assert "exactly zero" not in legend_texts(figure)


def test_the_heat_map_tells_zeros_from_what_was_not_recorded() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        values = -0.1 * np.arange(20)[::-1, None] * np.ones(BATCH)
        values[:5] = -np.inf if step == 0 else np.nan
        return [signal("adjoint.log_norm/layers.0.forward.h", "time batch", values, step)]

    figure = drawn("heatmap", [an_arm("rnn", make, length=20, lag=None)])
    axes = figure.axes[0]
    values, cover = (np.ma.asarray(mesh.get_array()).reshape(2, 20) for mesh in axes.collections)
    np.testing.assert_array_equal(np.ma.getmaskarray(values)[:, 15:], np.ones((2, 5), dtype=bool))
    assert not np.ma.getmaskarray(values)[:, :15].any()
    np.testing.assert_array_equal(
        ~np.ma.getmaskarray(cover), np.repeat([[False, False], [False, True]], [15, 5], axis=1)
    )
    assert {"exactly zero", "not recorded, or not a number"} <= set(legend_texts(figure))


def test_the_fan_holds_the_largest_and_the_slopes() -> None:
    figure = drawn("singular_values", [an_arm("rnn", propagators(-0.05, 5, 60), seeds=2, steps=(0,), length=60)])
    (axes,) = figure.axes
    (largest,) = named_lines(axes, "largest")
    lags = np.asarray(largest.get_xdata())
    np.testing.assert_allclose(largest.get_ydata(), (0.3 - 0.05 * lags) / LN10, atol=1e-12)
    for name, rate in (("λ1", -0.05), ("λ3", -0.07)):
        (slope,) = named_lines(axes, name)
        np.testing.assert_allclose(slope.get_ydata(), [0.0, rate * lags.max() / LN10])
    assert axes.get_title() == "rnn: before training\nλ1 = −0.05, λ3 = −0.07 per step"


def test_the_fan_ends_at_the_floor_of_rounding() -> None:
    from rnnbench_analyzers.pictures.singular_values import fan

    found = fan(an_arm("rnn", propagators(-0.05, 5, 60, floor=-2.0), seeds=2), "network", last=True)
    assert found is not None
    assert found.ranks is not None
    expected = -0.05 * np.arange(5) - 0.01 * found.lags[:, None] * np.arange(5)
    np.testing.assert_array_equal(np.isnan(found.ranks), expected < -2.0)
    np.testing.assert_allclose(found.ranks[:, 0], found.largest)


def test_of_a_large_state_only_the_largest_is_drawn() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        values = -0.1 * np.array([1.0, 2.0, 4.0])[None, :, None] * np.ones((2, 3, BATCH))
        return [
            signal("propagator.lags", "lag", [1, 2, 4], step),
            signal("propagator.log_norm/network", "origin lag batch", values, step),
        ]

    figure = drawn("singular_values", [an_arm("rnn", make, steps=(0,))])
    (line,) = named_lines(figure.axes[0], "largest")
    np.testing.assert_allclose(line.get_ydata(), np.array([-0.1, -0.2, -0.4]) / LN10)
    assert "half of the ranks" not in legend_texts(figure)


def test_a_spectrum_is_drawn_against_its_rank() -> None:
    figure = drawn("exponents", [an_arm("rnn", spectra(0.1, 6), seeds=3), an_arm("lstm", spectra(-0.1, 4), seeds=3)])
    before, after = figure.axes
    for name, top, ranks in (("rnn", 0.1, 6), ("lstm", -0.1, 4)):
        for axes, trained in ((before, 0.0), (after, 0.05)):
            (line,) = named_lines(axes, name)
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, ranks + 1))
            np.testing.assert_allclose(line.get_ydata(), top - 0.05 * np.arange(ranks) ** 1.3 + trained)
    level = [line for line in before.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0]
    assert [float(line.get_ydata()[0]) for line in level] == [0.0]
    assert legend_texts(figure)[-2:] == ["rnn", "lstm"]


def test_exponents_of_directions_that_are_lost_are_named() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        return [signal("spectrum.exponents/network", "batch rank", [[-0.1, -0.5, -np.inf]] * BATCH, step)]

    figure = drawn("exponents", [an_arm("irnn", make)])
    assert legend_texts(figure)[-1] == "irnn (−∞ from rank 3 on)"


def test_saturation_goes_up_for_the_high_end_and_down_for_the_low() -> None:
    steps = (0, 10, 100)
    figure = drawn("saturation", [an_arm("lstm", gates(("i", "f")), seeds=3, steps=steps)])
    (axes,) = figure.axes
    for index, name in enumerate(("i", "f")):
        high, low = named_lines(axes, f"layers.0.forward.{name}")
        expected = 0.12 * index + 0.1 * np.log1p(steps)
        np.testing.assert_array_equal(high.get_xdata(), steps)
        np.testing.assert_allclose(high.get_ydata(), expected)
        np.testing.assert_allclose(low.get_ydata(), -0.5 * expected)
    level = [line for line in axes.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0]
    assert sorted(float(line.get_ydata()[0]) for line in level) == [-0.5, 0.0, 0.5]
    assert legend_texts(figure) == ["i", "f", "threshold: 0.5, both ends together"]


def test_the_three_numbers_are_bars_with_what_they_are_read_from() -> None:
    figure = drawn("reach", [an_arm("rnn", reaching(20, 15, 60), length=60, lag=50)])
    strip, axes = figure.axes
    bars = {bar.get_label(): bar.patches[0].get_width() for bar in strip.containers}
    assert bars["needs"] == 50
    assert bars["reaches"] == 20
    assert 14 <= bars["uses"] <= 17  # between two probed lags
    assert [text.get_text() for text in strip.texts] == ["50", "20", f"{bars['uses']:.0f}"]
    (gradient,) = named_lines(axes, "reaches")
    slope = np.log10(1e-3) / 20.5
    np.testing.assert_allclose(gradient.get_ydata(), np.maximum(slope * np.arange(60), -5.0), atol=1e-12)
    (use,) = named_lines(axes, "uses")
    np.testing.assert_allclose(use.get_ydata(), np.maximum(np.log10(0.05) * np.asarray(use.get_xdata()) / 15, -5.0))
    level = [line for line in axes.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0]
    np.testing.assert_allclose(sorted(float(line.get_ydata()[0]) for line in level), [-3.0, np.log10(0.05)])


def test_what_is_not_known_has_no_bar_but_a_word() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        return reaching(20, 15, 60)(seed, step, draws)[:1]

    figure = drawn("reach", [an_arm("rnn", make, seeds=6, length=60, lag=None)])
    strip = figure.axes[0]
    texts = [text.get_text() for text in strip.texts]
    assert texts[0] == "not known"
    assert texts[1].startswith("25 [")
    assert texts[2] == "not recorded"
    assert [bar.get_label() for bar in strip.containers] == ["reaches"]


def test_parts_of_a_gradient_are_drawn_beside_its_norm() -> None:
    """Two arms whose gradients have the same norm, one from the last steps, one from everywhere."""
    near = an_arm("near", contributions(-0.5, 60), seeds=3, steps=(0,), length=60, lag=50)
    spread = an_arm("spread", contributions(0.0, 60), steps=(0,), length=60, lag=50)
    figure = drawn("lags", [near, spread])
    (axes,) = figure.axes
    lags = np.arange(60)
    for name, rate in (("near", -0.55), ("spread", 0.0)):  # the middle of three seeds
        (line,) = named_lines(axes, name)
        np.testing.assert_allclose(line.get_ydata(), rate * lags / LN10, atol=1e-12)
    # 1 - exp(-0.55 n) >= 0.9 from n = 5 on; of 60 equal parts 54 are nine tenths
    assert [float(tick.get_xdata()[0]) for tick in named_lines(axes, "nine tenths")] == [4, 53]
    (leaves,) = named_lines(axes, "leaves")
    assert float(leaves.get_xdata()[0]) == np.ceil(12 * LN10 / 0.55)
    texts = legend_texts(figure)
    assert "W: layers.0.forward.weight_hh" in texts
    assert texts[-2] == f"near: |dL/dW| 0.2, far half {np.exp(-0.55 * 26):.2g} of it"
    assert texts[-1] == f"spread: |dL/dW| 0.2, far half {34 / 60:.2g} of it"
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (25.5, 50.5)


def test_parts_before_and_after_training_and_without_a_known_need() -> None:
    figure = drawn("lags", [an_arm("rnn", contributions(-0.5, 60, trained=-0.01), length=60, lag=None)])
    before, after = figure.axes
    for axes, rate in ((before, -0.5), (after, -0.01)):
        (line,) = named_lines(axes, "rnn")
        np.testing.assert_allclose(line.get_ydata(), rate * np.arange(60) / LN10, atol=1e-12)
        assert not axes.patches
    assert legend_texts(figure)[-1] == "rnn: |dL/dW| 0.2 → 0.2"


def test_parts_that_are_no_numbers_leave_a_gap_and_a_question_mark() -> None:
    def make(seed: int, step: int, draws: np.random.Generator) -> list[Signal]:
        parts, beyond = contributions(-0.1, 20)(seed, step, draws)
        parts.values[3], parts.values[7], parts.values[19] = np.nan, np.inf, -np.inf
        beyond.values[0] = np.nan
        return [parts, beyond]

    figure = drawn("lags", [an_arm("rnn", make, length=20, lag=10, steps=(0,))])
    (line,) = named_lines(figure.axes[0], "rnn")
    gaps = np.flatnonzero(np.isnan(np.asarray(line.get_ydata(), dtype=np.float64)))
    np.testing.assert_array_equal(gaps, [3, 7, 19])
    assert legend_texts(figure)[-1] == "rnn: |dL/dW| ?"
