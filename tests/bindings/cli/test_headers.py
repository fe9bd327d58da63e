"""NVIDIA's headers: brought once, alone out of a wheel, only where nvcc is and its toolkit lacks them."""

import zipfile

import pytest

from bindings.cli import headers, venv

NO_NETWORK = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A .venv, a toolkit without the headers, and a pip that loads small wheels or answers otherwise."""
    home, toolkit = tmp_path / "venv", tmp_path / "toolkit"
    (home / "lib/python3.11/site-packages").mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin/python").touch()
    toolkit.mkdir()
    answers, loaded = [], []

    def download(arguments):
        loaded.append(arguments[-1])
        if answers:
            return answers.pop()
        name = arguments[-1].replace("==", "-") + "-py3-none-any.whl"
        with zipfile.ZipFile(arguments[arguments.index("-d") + 1] + "/" + name, "w") as wheel:
            wheel.writestr("nvidia/cu13/include/cublasLt.h", "#pragma once\n")
            wheel.writestr("nvidia/cu13/lib/libcublasLt.so.13", "x" * 1000)
        return 0, ""

    monkeypatch.setattr(venv, "HOME", home)
    monkeypatch.setattr(headers, "toolkit", lambda: toolkit)
    monkeypatch.setattr(headers, "download", download)
    download.answers, download.loaded, download.home, download.toolkit = answers, loaded, home, toolkit
    return download


def files(home):
    return sorted(p.name for p in home.rglob("*") if p.is_file())


def test_headers_alone_are_kept_and_brought_once(pip):
    assert headers.ensure("test") == headers.TABLE
    assert files(pip.home) == ["cublasLt.h", "headers.txt", "python"]
    assert headers.ensure("test") == [] and len(pip.loaded) == 2
    assert pip.loaded[0] == "nvidia-cublas==13.1.1.3"


def test_what_the_toolkit_has_is_not_brought(pip):
    (pip.toolkit / "cublasLt.h").touch()
    assert [wheel.name for wheel in headers.missing("test")] == ["nvidia-nccl-cu13"]


@pytest.mark.parametrize("command", ["build", "demo"])
def test_who_builds_for_the_cpu_needs_none(pip, command):
    assert headers.ensure(command) == [] and not pip.loaded


def test_without_nvcc_there_is_nothing_to_bring(pip, monkeypatch):
    monkeypatch.setattr(headers, "toolkit", lambda: None)
    assert headers.ensure("test") == [] and not pip.loaded


def test_without_a_network_the_rest_goes_on(pip, capfd):
    pip.answers += [(1, NO_NETWORK), (1, NO_NETWORK)]
    assert headers.ensure("test") == []
    assert "cannot be reached" in capfd.readouterr().err
    assert headers.missing("test") == headers.TABLE
