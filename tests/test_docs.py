"""The documentation's code runs.

A file's blocks run in order, in an empty folder of their own:

- ``python``: executed, all of a file's in one namespace; with ``file=NAME`` written to that file instead.
- ``toml``: must parse; with ``file=NAME`` written to that file.
- ``console``: each line that starts with ``$`` is run by bash and must end well, or with N where ``# exit N`` ends the
  line. The lines below a command must occur in its output, in that order, spaces apart; ``...`` stands for anything.
- ``bash`` is for what cannot be run here, and must say why: any block may carry ``no-run: REASON``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from rnnbench.cli import COMMANDS, root
from rnnbench.probes.kinds import KINDS
from rnnbench.spec import RunSpec

ROOT = Path(__file__).parents[1]
TRAINS = re.compile(r"^\$ rnnbench (run|parity)", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)[ ]*(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    body: str
    place: str

    @property
    def file(self) -> str | None:
        found = re.search(r"\bfile=(\S+)", self.info)
        return found[1] if found else None

    @property
    def reason(self) -> str | None:
        found = re.search(r"\bno-run:\s*(.+)", self.info)
        return found[1] if found else None


def blocks(text: str, name: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], match["info"], match["body"], f"{name}, line {line}")


def run_page(text: str, name: str, folder: Path) -> None:
    """Run a page's blocks in `folder`; an AssertionError names the block that did not do what it says."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(text, name):
        if block.reason or block.language in ("", "text", "json"):
            continue
        assert block.language in ("python", "toml", "console"), f"{block.place}: {block.language} needs no-run: REASON"
        if block.language == "toml":
            tomllib.loads(block.body)
        if block.file:
            assert Path(block.file).name == block.file, block.place
            (folder / block.file).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.body, block.place, "exec"), namespace)
        elif block.language == "console":
            run_console(block, folder)


def run_console(block: Block, folder: Path) -> None:
    """Run a block's commands one by one and hold their output against what the block shows."""
    steps = re.split(r"^\$ ", block.body, flags=re.MULTILINE)
    assert not steps[0].strip(), f"{block.place}: starts with output"
    for step in steps[1:]:
        command, _, shown = step.partition("\n")
        wanted = re.search(r"#\s*exit (\d+)\s*$", command)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RNNBENCH_DATA": str(folder),
        }
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=300,
            check=False,
        )
        status = int(wanted[1]) if wanted else 0
        assert done.returncode == status, f"{block.place}: {command} ended with {done.returncode}\n{done.stdout}"
        lines = iter([" ".join(line.split()) for line in done.stdout.splitlines()])
        for line in shown.splitlines():
            expected = " ".join(line.split())
            if expected in ("", "..."):
                continue
            pattern = re.compile(".*".join(re.escape(part) for part in expected.split("...")))
            found = any(pattern.fullmatch(printed) for printed in lines)
            assert found, f"{block.place}: {command} did not print {line!r} there\n{done.stdout}"


def _slow_if_it_trains(page: Path) -> object:
    marks = [pytest.mark.slow] if TRAINS.search(page.read_text(encoding="utf-8")) else []
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [_slow_if_it_trains(page) for page in PAGES])
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    run_page(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)), tmp_path)
    for name in set(sys.modules) - before:  # modules that a page wrote must not meet another page's of the same name
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_page_and_every_option_is_on_it(name: str) -> None:
    file = ROOT / "docs" / ("results.md" if name == "results" else f"commands/{name}.md")
    page = file.read_text(encoding="utf-8")
    assert f"rnnbench {name}" in page
    context = click.Context(root)
    _, command, _ = root.resolve_command(context, [name])
    assert command is not None
    group = command.commands.values() if isinstance(command, click.Group) else [command]
    for each in group:
        for parameter in each.params:
            if isinstance(parameter, click.Option) and parameter.name != "help":
                assert any(option in page for option in parameter.opts), f"{name} {each.name}: {parameter.opts}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ false\n```\n", "ended with 1"),
        ("```console\n$ true # exit 2\n```\n", "ended with 0"),
        ("```console\n$ printf 'a\\nb\\n'\nb\na\n```\n", "did not print 'a'"),
        ("```console\n$ echo abc\nab\n```\n", "did not print 'ab'"),
        ("```console\n$ echo abc\na.c\n```\n", "did not print 'a.c'"),
        ("```console\n$ echo abc\n...b\n```\n", "did not print '...b'"),
        ("```console\nout\n$ true\n```\n", "starts with output"),
        ("```bash\ntrue\n```\n", "needs no-run"),
        (
            "```python file=a.py\nx = 1\n```\n```python\nimport a\nassert a.x == 2, 'from the page'\n```\n",
            "from the page",
        ),
    ],
)
def test_the_harness_fails_where_a_page_is_wrong(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("a", None)
    with pytest.raises(AssertionError, match=message):
        run_page(text, "page", tmp_path)
    sys.modules.pop("a", None)


def test_the_harness_passes_where_a_page_is_right(tmp_path: Path) -> None:
    text = (
        "```python\nx = 1\n```\n```python\nassert x == 1\n```\n```toml file=a.toml\na = 1\n```\n"
        "```console\n$ cat a.toml\na   = 1\n$ printf 'a\\nb\\nc\\n'\na\n...\nc\n```\n"
        "```console\n$ echo a.b c\na.b...\n$ exit 3  # exit 3\n```\n"
        "```bash no-run: it would wait\nsleep 1000\n```\n```text\nanything\n```\n"
    )
    run_page(text, "page", tmp_path)
    assert [block.reason for block in blocks(text, "page")][-2] == "it would wait"


def test_every_setting_is_on_its_page() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for section in ("network", "data", "budget", "eval", "stop", "record"):
        model = RunSpec.model_fields[section].annotation
        for part in (model, *getattr(model, "__args__", ())):
            for name, field in getattr(part, "model_fields", {}).items():
                assert f"| `{section}.{name}` |" in page
                assert f"| {field.description} |" in page
    for name in RunSpec.model_fields:
        assert f"`{name}" in page


def test_every_signal_is_on_its_page() -> None:
    page = (ROOT / "docs" / "probes.md").read_text(encoding="utf-8")
    for kind in KINDS.values():
        rows = [line for line in page.splitlines() if line.startswith(f"| `{kind.name}`")]
        assert len(rows) == 1, kind.name
        for part in (", ".join(kind.axes) or "none", kind.unit or "1", kind.meaning.replace("|", "\\|"), kind.cost):
            assert f"| {part} |" in rows[0]
