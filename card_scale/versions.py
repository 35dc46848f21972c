"""Guard: the adapters around DeepSpeed and Megatron-core rest on what those versions were seen to do."""

import importlib.metadata

from card_scale.errors import ConfigurationError

SUPPORTED = {
    "torch": ("2.11", "2.13"),
    "deepspeed": ("0.19.8",),
    "megatron-core": ("0.16.1",),
}
"""Package and the version prefixes that the adapters were written for."""


def check_versions() -> None:
    """Raise ConfigurationError naming the package, its version and the supported ones."""
    for package, prefixes in SUPPORTED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigurationError(f"{package} is not installed; install it with: {_install(package)}") from None
        if not any(found == prefix or found.startswith((prefix + ".", prefix + "+")) for prefix in prefixes):
            raise ConfigurationError(
                f"{package} {found} is installed, but card_scale's adapters were written for "
                f"{' or '.join(prefixes)}; install it with: {_install(package)}"
            )


def _install(package: str) -> str:
    if package == "torch":  # in no constraints file, because it is installed first and by version
        return f"pip install torch=={SUPPORTED['torch'][-1]}.0"
    return f"pip install -c constraints.txt {package}"
