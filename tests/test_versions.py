"""The guard around the versions that the adapters were written for."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from card_scale.errors import ConfigurationError
from card_scale.versions import SUPPORTED, check_versions

GOOD = {"torch": "2.13.0", "deepspeed": "0.19.8", "megatron-core": "0.16.1"}


@pytest.fixture
def installed(monkeypatch):
    """Versions that the guard sees; None for a package that is not installed."""
    versions = dict(GOOD)

    def version(package):
        if versions[package] is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_this_environment_passes():
    check_versions()


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cpu", "2.13.1", "2.11.0", "2.11.0+cu130"])
def test_supported_versions(installed, torch):
    installed["torch"] = torch
    check_versions()


@pytest.mark.parametrize(
    "package, version",
    [
        ("torch", "2.12.0"),
        ("torch", "2.1.0"),
        ("torch", "2.130.0"),
        ("deepspeed", "0.19.80"),
        ("deepspeed", "0.18.0"),
        ("megatron-core", "0.16.0"),
        ("megatron-core", "0.17.0"),
    ],
)
def test_another_version_is_refused(installed, package, version):
    installed[package] = version
    with pytest.raises(ConfigurationError) as caught:
        check_versions()
    for word in (package, version, *SUPPORTED[package]):
        assert word in str(caught.value)


@pytest.mark.parametrize("package", GOOD)
def test_a_missing_package_is_named(installed, package):
    installed[package] = None
    with pytest.raises(ConfigurationError, match=f"{package} is not installed; install it with: (.*)") as caught:
        check_versions()
    command = "pip install torch==2.13.0" if package == "torch" else f"pip install -c constraints.txt {package}"
    assert str(caught.value).endswith(command)


def test_the_repository_installs_supported_versions():
    root = Path(__file__).parents[1]
    text = (root / "constraints.txt").read_text() + (root / "Makefile").read_text()
    for package, prefixes in SUPPORTED.items():
        (pinned,) = re.findall(rf"\b{package}==(\S+)$", text, re.MULTILINE)
        assert pinned.startswith(prefixes)
