"""Python and packages against what dil asks for, and against what its tests ran with."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from dil_cli import __version__
from dil_cli.artifacts.manifest import git_revision
from dil_cli.config.paths import pins_file
from dil_cli.doctor.finding import Finding, error, ok, warning

DECIDE_TOO = ("tokenizers", "huggingface_hub")
"""Packages that dil does not name, and that change what a run does."""
EXTRAS = {"lm_eval": ("benchmark=paper", "eval"), "openai": ("judge=openai", "judge")}
"""Packages of one use alone: for what in `dil eval`, and the extra that brings them."""


def python() -> Iterator[Finding]:
    """The interpreter, and the dil that runs."""
    from packaging.specifiers import SpecifierSet

    here = platform.python_version()
    wanted = _metadata("Requires-Python")
    git = git_revision()
    revision = "" if git is None else f" (git {git[:8]}{'+' if git.endswith('+') else ''})"
    text = f"{here} on {platform.system()} {platform.machine()}, dil {__version__}{revision}"
    if wanted and not SpecifierSet(wanted).contains(here, prereleases=True):
        yield error("python", f"{text}; dil needs {wanted}", "make PYTHON=python3.11 install, or another environment")
    else:
        yield ok("python", text, python=here, dil=__version__, git=git)


def packages() -> Iterator[Finding]:
    """What dil requires: missing, outside its range, other than tested."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("dil") or ()] if _metadata("Name") else []
    requirements = [need for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]
    pins = read_pins(pins_file().read_text(encoding="utf-8")) if pins_file().is_file() else {}
    ranges = {need.name: need.specifier for need in requirements}
    found = {name: installed(name) for name in [*ranges, *DECIDE_TOO]}
    for name, version in found.items():
        wanted = str(ranges.get(name, ""))
        if version is None and name in ranges:
            yield error("packages", f"{name} is not installed", f"pip install '{name}{wanted}'")
        elif version is not None and not ranges.get(name, Requirement(name).specifier).contains(version, True):
            yield error("packages", f"{name} is {version}, dil needs {wanted}", f"pip install '{name}{wanted}'")
    other = {
        name: version for name, version in found.items() if version and _key(name) in pins and version_differs(
            version, pins[_key(name)]
        )
    }  # fmt: skip
    if not requirements or not pins:
        yield warning(
            "packages", "what dil was tested with is not known here, only what is installed",
            "install dil with pip, or run it from its repository with `make install`", packages=found,
        )  # fmt: skip
    elif other:
        named = ", ".join(f"{name} {version} (tested {pins[_key(name)]})" for name, version in other.items())
        install = " ".join(f"{name}=={pins[_key(name)]}" for name in other)
        yield warning("packages", f"not as tested: {named}", f"pip install {install}", packages=found)
    elif all(found.values()):
        main = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers") if name in found)
        yield ok("packages", f"all {len(found)} as tested: {main}, ...", packages=found)


def extras() -> Iterator[Finding]:
    """What only some parts of `dil eval` need."""
    found = {name: installed(name) for name in EXTRAS}
    parts = []
    for name, (use, extra) in EXTRAS.items():
        has = f"{name} {found[name]}" if found[name] else f"{name} not installed (pip install 'dil[{extra}]')"
        parts.append(f"dil eval {use}: {has}")
    yield ok("extras", "; ".join(parts), **found)


def read_pins(text: str) -> dict[str, str]:
    """Package, lower-case with dashes, to version, of lines `name==version`."""
    lines = (line.partition("#")[0].strip().partition("==") for line in text.splitlines())
    return {_key(name): version for name, equals, version in lines if equals}


def version_differs(here: str, tested: str) -> bool:
    """Whether two versions are not the same release; torch's +cpu and +cu128 are."""
    from packaging.version import Version

    return Version(here).public != Version(tested).public


def installed(name: str) -> str | None:
    """The version of a package, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _metadata(key: str) -> str | None:
    """A field of what the installed dil says of itself; None where dil is not installed but only found."""
    try:
        value = metadata.metadata("dil")[key]
    except (metadata.PackageNotFoundError, KeyError):
        return None
    return str(value) if value else None


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
