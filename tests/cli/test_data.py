"""``rnnbench data``, on files made for the test; nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from rnnbench.errors import CorruptData, RunFailed
from rnnbench.tasks import datasets

Invoke = Callable[..., Result]
Failed = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it went to the network"))
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path / "none"))


def test_list(invoke: Invoke) -> None:
    result = invoke("data", "list")
    assert result.exit_code == 0
    assert "digits  comes with the installation" in result.stdout
    rows = {row["name"]: row for row in json.loads(invoke("data", "list", "--json").stdout)}
    assert "no train-images-idx3-ubyte.gz" in rows["mnist"]["state"]


def test_verify_without_data_is_bad_input(invoke: Invoke, failed: Failed) -> None:
    failed(invoke("data", "verify"), 2, "mnist: no train-images", "rnnbench data fetch mnist")


def test_verify_of_damaged_data_is_status_3(invoke: Invoke, failed: Failed, tmp_path: Path) -> None:
    for file in datasets.MNIST_FILES.values():
        (tmp_path / file.name).write_bytes(b"<html>not here</html>")
    failed(invoke("data", "verify", "--data-dir", str(tmp_path)), 3, "HTML page")


def test_verify_of_other_bytes_is_status_1(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {key: file.sha256 for key, file in datasets.MNIST_FILES.items()} | {"train_images": "0" * 64}
    monkeypatch.setattr(datasets, "load_mnist", lambda: datasets.Mnist({}, hashes))
    result = invoke("data", "verify")
    assert result.exit_code == 1
    assert "not the canonical bytes" in result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["no", "yes", "yes", "yes"]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["fetch", "mnst"], ["did you mean mnist?"]),
        (["fetch", "digits"], ["digits comes with the installation"]),
        (["verify", "cifar"], ["'cifar'"]),
        (["fetch", "mnist", "--data-dir", "/no/such/folder"], ["--data-dir: there is no folder '/no/such/folder'"]),
        (["verify", "--data-dir", ""], ["--data-dir"]),
    ],
)
def test_refusals(args: list[str], parts: list[str], invoke: Invoke, failed: Failed) -> None:
    failed(invoke("data", *args), 2, *parts)


def test_fetch_shows_each_file_once_and_names_the_folder(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fetch(name: str, progress: datasets.Progress) -> Path:
        for received in range(0, 101, 10):
            progress("images.gz", received, 100)
        return tmp_path / name

    monkeypatch.setattr(datasets, "fetch", fetch)
    result = invoke("data", "fetch", "mnist", "--data-dir", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"mnist: in {tmp_path / 'mnist'}\n")
    assert result.stderr == "images.gz: 100 bytes\n"


@pytest.mark.parametrize(("error", "status"), [(RunFailed("no mirror"), 1), (CorruptData("an HTML page"), 3)])
def test_fetch_that_fails(
    error: Exception, status: int, invoke: Invoke, failed: Failed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, progress: datasets.Progress) -> Path:
        raise error

    monkeypatch.setattr(datasets, "fetch", fetch)
    failed(invoke("data", "fetch", "mnist"), status, str(error))
