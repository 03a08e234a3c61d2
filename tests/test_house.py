"""The house rules that a machine can check: which room may import which, what the wheel brings, what files may say."""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rnnbench

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "rnnbench", ROOT / "suites" / "rnnbench_suites", ROOT / "analyzers" / "rnnbench_analyzers")
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))

LAYERS = (
    (
        "errors",
        "arrays",
        "streams",
        "component",
        "spec",
        "record",
        "signals",
        "findings",
        "evidence",
        "xp",
        "initialize",
    ),
    ("registry", "tasks", "cells", "techniques", "objectives"),
    ("backends", "probes", "store", "stats", "suite", "experiment", "context"),
    ("train", "engine", "diagnosis", "parity", "analysis"),
    ("api", "cli"),
    ("__main__",),
)
"""Rooms import from their own layer and from those before it, and nowhere in a circle."""

FRAMEWORKS = {"torch", "jax", "jaxlib", "optax", "flax", "equinox", "tensorflow"}
SLOW = {"seaborn", "matplotlib", "sklearn", "statsmodels", "pandas", "pyarrow", "scipy", "pooch", "safetensors"}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    package = next(package for package in PACKAGES if path.is_relative_to(package))
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Yield the full names that a module imports, leaving out what is for type checkers alone."""

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if top_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            yield child
            yield from visit(child)

    for node in visit(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """Return the room of rnnbench that an imported name lies in; None for one of the package's own public names."""
    parts = name.split(".")
    known = len(parts) > 1 and ((PACKAGES[0] / parts[1]).is_dir() or (PACKAGES[0] / f"{parts[1]}.py").exists())
    return parts[1] if parts[0] == "rnnbench" and known else None


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b\nfrom c import d, e as f\nif TYPE_CHECKING:\n    import hidden\n"
        "class X:\n    def g(self):\n        try:\n            import inner\n        finally:\n            pass\n"
    )
    assert list(imports(file)) == ["a.b", "c.d", "c.e", "inner"]
    assert list(imports(file, top_only=True)) == ["a.b", "c.d", "c.e"]
    assert (room("rnnbench.spec.RunSpec"), room("rnnbench.run"), room("torch.spec")) == ("spec", None, None)


def test_every_room_has_its_layer() -> None:
    rooms = {module_of(path).split(".")[1] for path in PACKAGES[0].rglob("*.py") if module_of(path) != "rnnbench"}
    assert rooms - {name for layer in LAYERS for name in layer} == set()


def test_rooms_import_downwards_and_in_no_circle() -> None:
    height = {name: at for at, layer in enumerate(LAYERS) for name in layer}
    graph: dict[str, set[str]] = {}
    upward = []
    for path in PACKAGES[0].rglob("*.py"):
        here = module_of(path)
        if here == "rnnbench":
            continue
        here = here.split(".")[1]
        for name in imports(path):
            there = room(name)
            if there is not None and there != here:
                graph.setdefault(here, set()).add(there)
                if height[there] > height[here]:
                    upward.append(f"{label(path)} imports {name}")
    assert upward == []
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_frameworks_and_slow_imports_stay_where_they_belong(path: Path) -> None:
    here = module_of(path)
    if not here.startswith("rnnbench.backends"):
        assert {name.split(".")[0] for name in imports(path)} & FRAMEWORKS == set()
    slow_room = here.startswith(("rnnbench.store", "rnnbench.cli.results"))  # imported when results are read or written
    if here.startswith("rnnbench") and not slow_room:
        assert {name.split(".")[0] for name in imports(path, top_only=True)} & SLOW == set()


def test_siblings_import_public_names_only_and_never_each_other() -> None:
    siblings = {package.name for package in PACKAGES[1:]}
    for package in PACKAGES[1:]:
        for path in package.rglob("*.py"):
            for name in imports(path):
                assert name.split(".")[0] not in siblings - {package.name}, f"{label(path)} imports {name}"
                if name.startswith("rnnbench"):
                    assert not any(part.startswith("_") for part in name.split(".")), f"{label(path)} imports {name}"
    core = [label(p) for p in PACKAGES[0].rglob("*.py") if {n.split(".")[0] for n in imports(p)} & siblings]
    assert core == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=label)
def test_no_module_takes_the_name_of_something_in_its_package(folder: Path) -> None:
    """Importing a submodule sets its name in the package, over a function or a builtin of that name."""
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
    own = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if folder == PACKAGES[0]:
        own |= set(rnnbench.__all__)
    modules -= {"__init__", "__main__", "__pycache__"}
    assert modules & own == set()
    assert modules & set(dir(builtins)) == set()


def test_public_names_are_all_there_and_come_lazily(tmp_path: Path) -> None:
    heavy = sorted(FRAMEWORKS | SLOW | {"numpy", "pydantic"})
    script = (
        "import sys, rnnbench\n"
        f"assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)\n"
        "for name in rnnbench.__all__: getattr(rnnbench, name)\n"
        f"assert not {FRAMEWORKS!r} & set(sys.modules), {FRAMEWORKS!r} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(rnnbench.__all__) <= set(dir(rnnbench))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rnnbench.nothing


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rnnbench.__version__
    assert f"\nversion: {rnnbench.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    (file,) = out.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_brings_its_own_names_and_no_others(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    info = f"rnnbench-{rnnbench.__version__}.dist-info"
    assert tops == {"rnnbench", "rnnbench_suites", "rnnbench_analyzers", info}
    assert {f"{top}/py.typed" for top in tops - {info}} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    here = {path.relative_to(package.parent).as_posix() for package in PACKAGES for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert {name for name in names if not name.startswith(info)} == here
    assert any(name.endswith(".toml") for name in here)


@pytest.mark.slow
def test_the_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    script = (
        "import rnnbench, rnnbench_suites, rnnbench_analyzers\n"
        "from rnnbench.suite import load_suite\n"
        "print(rnnbench.__file__); print(load_suite('quickstart').count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, count = done.stdout.splitlines()
    assert Path(file).is_relative_to(target)
    assert int(count) > 0


def tracked() -> list[Path]:
    """Return the files that the repository holds, or would hold."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_no_file_names_a_place_on_the_machine_that_it_was_written_on() -> None:
    places = re.compile(
        rf"(?<![\w.])/({'|'.join(['t' + 'mp', 'ro' + 'ot', 'wo' + 'rk', 'ho' + 'me', 'o' + 'pt'])})(/|\b)"
    )
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            if places.search(line):
                found.append(f"{label(path)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_constraints_pin_every_requirement_and_nothing_local() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["torch"], *extras["jax"], *extras["dev"]]
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", line)[0]).lower() for line in wanted}
    assert names - pinned == set()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "python -m pytest --tier fast,slow -n auto"
    assert command in (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().endswith(command)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
