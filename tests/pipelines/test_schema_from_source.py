"""A component's dataclass read from its source equals the imported one, so words are checked without importing torch."""

import dataclasses
import importlib
import inspect
import typing

import pytest
import yaml

from pipelines.catalog import ROOT
from pipelines.config import ConfigError
from pipelines.kinds import defaults, leaves
from pipelines.schema import SECTIONS
from pipelines.sources import class_constants, docs_of, parameters_of, read_class, schema_of


def targets():
    """Every class that a file under configs/ names."""
    for path in sorted(ROOT.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text()) or {}
        for section in [content, *content.values()]:
            if isinstance(section, dict) and "_target_" in section:
                yield section["_target_"]


TARGETS = sorted(set(targets()))


def imported(target):
    module, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind, typing.get_type_hints(kind.__init__)["config"]


def type_names(schema):
    """Types of all keys in words that do not depend on which of two equal dataclasses they were read from."""
    return {key: str(kind) for key, kind in leaves(schema).items()}


def test_the_configurations_name_components():
    assert {"lightning_modules.fira.module.FiraModule", "datamodules.fira.FiraData", "lightning_modules.optim.fira.Fira"} <= {*TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_keys_types_and_defaults_equal_the_imported_ones(target):
    read, (_, real) = schema_of(target), imported(target)
    assert read is not real
    assert read.__name__ == real.__name__
    assert type_names(read) == type_names(real)
    assert defaults(read) == defaults(real)
    assert dataclasses.asdict(read()) == dataclasses.asdict(real())
    assert read.__dataclass_params__.frozen
    assert real.__dataclass_params__.frozen


@pytest.mark.parametrize("target", TARGETS)
def test_ranges_are_checked_as_the_imported_class_checks_them(target):
    read, (_, real) = schema_of(target), imported(target)
    refused = 0
    for field in dataclasses.fields(real):
        for odd in (-1, 0, -0.5, 1.5, 2**40, "", "x", [], None):
            said = []
            for schema in (read, real):
                try:
                    schema(**{field.name: odd})
                    said.append(None)
                except (ValueError, TypeError, AttributeError) as error:
                    said.append((type(error), str(error)))
            assert said[0] == said[1], (field.name, odd)
            refused += said[0] is not None
    has_checks = hasattr(real, "__post_init__")
    assert refused or not has_checks


@pytest.mark.parametrize("target", TARGETS)
def test_constructors_and_constants_equal_the_imported_ones(target):
    kind, _ = imported(target)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    assert parameters_of(target) == [p.name for p in parameters if p.default is p.empty]
    for name, value in class_constants(target).items():
        assert getattr(kind, name) == value
    if hasattr(kind, "STRATEGIES"):
        assert class_constants(target)["STRATEGIES"] == kind.STRATEGIES


@pytest.mark.parametrize("schema", [*map(schema_of, TARGETS), *(read_class(s.__module__, s.__name__) for s in SECTIONS.values())],
                         ids=lambda schema: schema.__name__)
def test_every_key_says_what_it_means_and_has_a_default(schema):
    docs = docs_of(schema)
    assert {key for key in leaves(schema) if not docs.get(key)} == set()
    assert "???" not in str(defaults(schema))


@pytest.mark.parametrize("schema", SECTIONS.values(), ids=SECTIONS)
def test_sections_read_from_source_equal_the_imported_ones(schema):
    read = read_class(schema.__module__, schema.__name__)
    assert type_names(read) == type_names(schema)
    assert defaults(read) == defaults(schema)


COMPONENT = '''
import math
from dataclasses import dataclass, field
from typing import Literal
import torch
from {package}.parts import Inner, SIZES
HALF = 0.5

def check(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{{name}}: must be 0 or above, not {{value}}")

@dataclass(frozen=True)
class Base:
    seed: int = 1
    """where it starts"""

@dataclass(frozen=True)
class ThingConfig(Base):
    kind: Literal["a", "b"] = "a"
    """which
    of two"""
    ratio: float = HALF
    """a share"""
    names: list[str] = field(default_factory=lambda: list(SIZES))
    """the sizes"""
    inner: Inner = field(default_factory=Inner)
    """more of it"""

    def __post_init__(self) -> None:
        check("ratio", self.ratio)

    @property
    def root(self) -> float:
        return math.sqrt(self.ratio)

class Thing(torch.nn.Module):
    LIMIT = 3
    def __init__(self, config: ThingConfig, optimizer: object, more: int = 0) -> None:
        super().__init__()

class Child(Thing):
    LIMIT = 4
'''
PARTS = '''
from dataclasses import dataclass
SIZES = {"small": 1, "large": 2}
@dataclass(frozen=True)
class Inner:
    depth: int = 2
    """how deep"""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of one component and return its name; importing it would fail without torch, reading it must not."""
    name = f"things_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "parts.py").write_text(PARTS)
    (folder / "thing.py").write_text(COMPONENT.format(package=name))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_reading_follows_bases_constants_functions_and_neighbours_without_importing_anything(package):
    schema = schema_of(f"{package}.thing.Child")
    made = schema(ratio=0.25)
    assert dataclasses.asdict(made) == {"seed": 1, "kind": "a", "ratio": 0.25, "names": ["small", "large"], "inner": {"depth": 2}}
    assert made.root == 0.5
    assert docs_of(schema) == {"seed": "where it starts", "kind": "which of two", "ratio": "a share", "names": "the sizes",
                               "inner": "more of it", "inner.depth": "how deep"}
    with pytest.raises(ValueError, match="ratio: must be 0 or above, not -1"):
        schema(ratio=-1)
    assert parameters_of(f"{package}.thing.Child") == ["config", "optimizer"]
    assert class_constants(f"{package}.thing.Child") == {"LIMIT": 4}


@pytest.mark.parametrize(("old", "new", "said"), [
    ('kind: Literal["a", "b"] = "a"', "kind: torch.dtype = torch.float32", "name 'torch' is not defined; a configuration may use only"),
    ("config: ThingConfig", "config: dict", "takes no dataclass called config"),
    ("config: ThingConfig", "settings: ThingConfig", "takes no dataclass called config"),
])
def test_a_component_that_cannot_be_read_is_refused_and_again_when_asked_again(package, tmp_path, old, new, said):
    path = tmp_path / package / "thing.py"
    path.write_text(path.read_text().replace(old, new))
    for _ in range(2):
        with pytest.raises(ConfigError, match=said):
            schema_of(f"{package}.thing.Thing")


@pytest.mark.parametrize("target", TARGETS)
def test_a_component_stands_in_the_file_of_its_configuration(target):
    kind, config = imported(target)
    assert kind.__module__ == config.__module__
