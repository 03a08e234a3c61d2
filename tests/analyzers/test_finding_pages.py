"""Every code has its page, every page its code, and the numbers on the pages are those of the code."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from rnnbench.findings import CODES

FOLDER = Path(__file__).parents[2] / "docs" / "findings"
HEADINGS = (
    "## What it means",
    "## How it is measured",
    "## What usually causes it",
    "## What usually helps",
    "## The paper",
)
ANALYZERS = ("outcome", "gradient_flow", "dynamics", "activity", "updates", "reach", "lags", "judging")
ROW = re.compile(r"^\| `(\w+)\.([A-Z_]+)` \| ([\d.]+) \|", re.MULTILINE)


def page(code: str) -> str:
    return (FOLDER / f"{code}.md").read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(## .+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def thresholds() -> dict[str, float]:
    """Return every number that an analyzer judges by, as ``module.NAME``."""
    found = {}
    for name in ANALYZERS:
        module = importlib.import_module(f"rnnbench_analyzers.{name}")
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        for constant, value in vars(module).items():
            if constant.isupper() and isinstance(value, (int, float)) and constant not in imported:
                found[f"{name}.{constant}"] = float(value)
    return found


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == {*CODES, "index"}


@pytest.mark.parametrize("code", CODES)
def test_a_page_says_what_a_page_has_to_say(code: str) -> None:
    text, known = page(code), CODES[code]
    assert text.startswith(f"# {code}\n\n{known.title}. As a rule: {known.severity}.\n")
    found = sections(text)
    assert tuple(found) == HEADINGS
    assert all(len(part.split()) > 2 for part in found.values())
    for heading, lines in ((HEADINGS[2], known.causes), (HEADINGS[3], known.remedies)):
        assert [line for line in found[heading].splitlines() if line.startswith("- ")] == [
            f"- {line}" for line in lines
        ]
    assert known.reference in found[HEADINGS[4]]


@pytest.mark.parametrize("code", CODES)
def test_the_index_lists_it(code: str) -> None:
    known = CODES[code]
    assert f"| [{code}]({code}.md) | {known.severity} | {known.title} |\n" in page("index")


def test_numbers_on_the_pages_are_those_of_the_code() -> None:
    known = thresholds()
    shown: set[str] = set()
    for code in CODES:
        for module, name, value in ROW.findall(page(code)):
            assert known[f"{module}.{name}"] == float(value), f"{code}: {module}.{name}"
            shown.add(f"{module}.{name}")
    assert shown == set(known)


def test_a_wrong_number_would_be_seen() -> None:
    text = page("gradient-vanishing").replace("| 0.001 |", "| 0.002 |")
    assert ("gradient_flow", "VANISHED", "0.002") in ROW.findall(text)
    assert thresholds()["gradient_flow.VANISHED"] != 0.002


def test_every_name_in_capitals_that_a_page_uses_is_in_its_table() -> None:
    for code in CODES:
        text = page(code)
        assert set(re.findall(r"`([A-Z][A-Z_]+)`", text)) <= {name for _, name, _ in ROW.findall(text)}, code
