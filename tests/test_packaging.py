"""What gets installed: every package at one exact version, the same on every machine."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])


def pins():
    """Read constraints.txt: name -> version."""
    lines = [line.strip() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()]
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(parts) == 2 for parts in split)
    names = [canonicalize_name(name) for name, _ in split]
    assert len(names) == len(set(names))
    return dict(zip(names, (version for _, version in split), strict=True))


def applies(requirement, extras):
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def reachable():
    """Yield every requirement of fivefold and its extras that is installed here, and of what they require in turn."""
    waiting, seen = [Requirement(f"fivefold[{','.join(EXTRAS)}]")], set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # `make bench` installs more than `make test`
        yield wanted, found
        waiting += [r for r in map(Requirement, found.requires or []) if applies(r, wanted.extras)]


def test_every_requirement_has_one_exact_pin_that_satisfies_it():
    known = pins()
    listed = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, listed):
        assert known[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_everything_installed_is_pinned_and_at_its_pin():
    known = pins()
    found = {canonicalize_name(d.name): Version(d.version).public for _, d in reachable() if d.name != "fivefold"}
    assert len(found) > 80
    assert found == {name: known.get(name) for name in found}


def test_installed_packages_fit_together():
    for wanted, found in reachable():
        assert wanted.specifier.contains(Version(found.version).public, prereleases=True), f"{wanted} but {found.version}"


def test_torch_is_pinned_without_naming_a_build_so_that_each_machine_takes_its_own():
    assert Version(pins()["torch"]).local is None


def test_the_interpreters_that_are_promised_are_those_that_the_makefile_and_the_metadata_allow():
    versions = Requirement(f"python{PROJECT['requires-python']}").specifier
    promised = {version for version in ("3.10", "3.11", "3.12", "3.13", "3.14") if version in versions}
    assert promised == {"3.11", "3.12", "3.13"}
    assert "not (3, 11) <= sys.version_info < (3, 14)" in (REPOSITORY / "Makefile").read_text()


def test_what_ci_runs_is_what_the_readme_says():
    script = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert {"make lint", "make test", "make test-slow"} <= set(script)
    assert "make test" in (REPOSITORY / "README.md").read_text()


def test_contributing_stays_short():
    assert len((REPOSITORY / "CONTRIBUTING.md").read_text().splitlines()) < 60
