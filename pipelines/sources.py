"""Read a component's configuration dataclass from its source, so that words are checked before torch is imported.

A component file imports torch at its top, which takes seconds. Its configuration dataclass needs none of that: it is built from the
standard library, literals, UPPERCASE literal constants, plain functions and other configuration dataclasses. So the file is parsed, not
imported, and only the definitions that the dataclass names are executed. What is read here equals what `import` gives; a test holds that.
"""

import ast
import builtins
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, hint

OURS = ("lightning_modules", "datamodules", "pipelines")
ALLOWED = ("a configuration may use only the standard library, literals, UPPERCASE literal constants, plain functions "
           "and other configuration dataclasses")


@cache
def schema_of(target: str) -> type:
    """Return the frozen dataclass that the constructor of the class `target` takes as `config`."""
    for source, node in _ancestry(*_component(target)):
        name = _config_annotation(node)
        if name is None:
            continue
        schema = source.evaluate(name)
        if dataclasses.is_dataclass(schema) and isinstance(schema, type):
            return schema
    raise ConfigError(f"_target_: {target} takes no dataclass called config.{hint(target, _classes_near('lightning_modules'))}")


def parameters_of(target: str) -> list[str]:
    """Return the names of the parameters that the constructor of the class `target` must be given."""
    init = next((found for _, node in _ancestry(*_component(target)) if (found := _constructor(node))), None)
    names = [arg.arg for arg in init.args.args[1:]] if init else []
    return names[:len(names) - len(init.args.defaults)] if init else []


def docs_of(schema: type, prefix: str = "") -> dict[str, str]:
    """Return the text under each field of a dataclass that was read from source; fields of nested ones are dotted."""
    own: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        own.update(_docs.get(base, {}))
    found: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        if field.name in own:
            found[prefix + field.name] = own[field.name]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found.update(docs_of(field.type, f"{prefix}{field.name}."))
    return found


def read_class(module: str, name: str) -> type:
    """Return a dataclass of `module` read from its source, for its docs."""
    source = _source(module)
    schema = source.evaluate(name) if source else None
    assert isinstance(schema, type), f"{module}.{name} is no dataclass"
    return schema


@cache
def class_constants(target: str) -> dict[str, Any]:
    """Return the UPPERCASE literal attributes of the class `target`, those of its base classes in our packages included."""
    found: dict[str, Any] = {}
    for _, node in reversed(list(_ancestry(*_component(target)))):
        for statement in node.body:
            for name in _bound(statement):
                if name.isupper() and isinstance(statement, ast.Assign | ast.AnnAssign):
                    literal, value = _literal(statement.value)
                    if literal:
                        found[name] = value
    return found


_docs: dict[type, dict[str, str]] = {}  # dataclass read from source -> its own fields' texts


class Source:
    """One module's syntax tree, and those of its names that have been evaluated."""

    def __init__(self, module: str, path: Path) -> None:
        self.module, self.path = module, path
        self.names: dict[str, Any] = {"__name__": module}
        self.tried: set[str] = set()
        self.nodes: dict[str, ast.stmt] = {}  # top-level name -> the statement that binds it
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            self.nodes.update(dict.fromkeys(_bound(node), node))

    def evaluate(self, name: str) -> Any:
        """Return the value of a top-level name if it is one of the few kinds that need no import of ours; None otherwise."""
        if name in self.tried:  # once is enough, and a class may mention itself
            return self.names.get(name)
        self.tried.add(name)
        node = self.nodes.get(name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._follow(node, name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and name.isupper():
            literal, value = _literal(node.value)
            if literal:
                self.names[name] = value
        elif isinstance(node, ast.ClassDef) and any(_is_dataclass(d) for d in node.decorator_list):
            self._execute(node)
            _docs[self.names[name]] = _texts(node)
        elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
            self._execute(node)
        return self.names.get(name)

    def _follow(self, node: ast.Import | ast.ImportFrom, name: str) -> None:
        """Bind an imported name: really from the standard library, by reading from our own packages, else not at all."""
        alias = next(a for a in node.names if (a.asname or a.name.partition(".")[0]) == name)
        origin = self.absolute(node) if isinstance(node, ast.ImportFrom) else alias.name
        if origin.partition(".")[0] in sys.stdlib_module_names:
            module = importlib.import_module(origin)
            if isinstance(node, ast.ImportFrom):
                self.names[name] = getattr(module, alias.name)
            else:
                self.names[name] = module if alias.asname else sys.modules[name]
        elif isinstance(node, ast.ImportFrom) and self.is_ours(origin):
            source = _source(origin)
            value = source.evaluate(alias.name) if source else None
            if source and alias.name in source.names:
                self.names[name] = value

    def _execute(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        """Run the definition of one dataclass or function after those of the names it mentions."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and not hasattr(builtins, inner.id):
                self.evaluate(inner.id)
        try:
            exec(compile(ast.Module([node], []), str(self.path), "exec"), self.names)
        except NameError as error:
            self.tried.discard(node.name)
            raise ConfigError(f"{self.module}.{node.name}: {error}; {ALLOWED}") from error

    def absolute(self, node: ast.ImportFrom) -> str:
        """Name the module that a `from` import reads, relative ones resolved."""
        if not node.level:
            return node.module or ""
        package = self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]
        return importlib.util.resolve_name("." * node.level + (node.module or ""), package)

    def is_ours(self, module: str) -> bool:
        """Tell whether a module may be read: one of our packages, or a neighbour in the same package."""
        return module.partition(".")[0] in (*OURS, self.module.partition(".")[0])


@cache
def _source(module: str) -> Source | None:
    path = _path(module)
    return Source(module, path) if path else None


def _path(module: str) -> Path | None:
    """Find the file of a module without importing its parent packages."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except ValueError:  # a module made by hand, such as __main__, has no spec
        spec = None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        for path in (Path(folder, *rest, "__init__.py"), Path(folder, *rest[:-1], f"{rest[-1]}.py")):
            if path.is_file():
                return path
    return None


def _component(target: str) -> tuple[Source, ast.ClassDef]:
    """Find the class that `_target_` names, or say what is wrong with the name and what comes close."""
    module, _, name = target.rpartition(".")
    source = _source(module) if module else None
    if source is None:
        near = hint(target, _classes_near(module or target)) or " Write PACKAGE.MODULE.CLASS, such as lightning_modules.optim.adamw.AdamW"
        raise ConfigError(f"_target_: no such module '{module or target}'.{near}")
    found = _class(source, name)
    if found is None:
        classes = [f"{module}.{n}" for n, node in source.nodes.items() if isinstance(node, ast.ClassDef)]
        raise ConfigError(f"_target_: no class '{name}' in {module}.{hint(target, classes) or ' Classes: ' + ', '.join(classes)}")
    return found


def _classes_near(module: str) -> list[str]:
    """List every component class in the packages where a wrong module name may have meant to look."""
    found: list[str] = []
    for top in dict.fromkeys((module.partition(".")[0], "lightning_modules", "datamodules")):
        init = _path(top)
        for path in init.parent.rglob("*.py") if init and init.name == "__init__.py" else ():
            dotted = ".".join([top, *path.relative_to(init.parent).with_suffix("").parts])  # type: ignore[union-attr]
            source = _source(dotted.removesuffix(".__init__"))
            found += [f"{dotted}.{n}" for n, node in source.nodes.items()
                      if isinstance(node, ast.ClassDef) and _config_annotation(node)] if source else []
    return found


def _class(source: Source, name: str) -> tuple[Source, ast.ClassDef] | None:
    """Find a class by name in a module, following imports within our packages."""
    node = source.nodes.get(name)
    if isinstance(node, ast.ClassDef):
        return source, node
    if isinstance(node, ast.ImportFrom) and source.is_ours(origin := source.absolute(node)):
        alias = next(a for a in node.names if (a.asname or a.name) == name)
        other = _source(origin)
        return _class(other, alias.name) if other else None
    return None


def _ancestry(source: Source, node: ast.ClassDef) -> Iterator[tuple[Source, ast.ClassDef]]:
    """Yield a class, then its base classes that lie in our packages, nearest first."""
    yield source, node
    for base in node.bases:
        found = _class(source, base.id) if isinstance(base, ast.Name) else None
        if found:
            yield from _ancestry(*found)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)


def _config_annotation(node: ast.ClassDef) -> str | None:
    """Return the name that annotates `config` in the class's own constructor, if it has one."""
    init = _constructor(node)
    for arg in (*init.args.args, *init.args.kwonlyargs) if init else ():
        if arg.arg == "config" and isinstance(arg.annotation, ast.Name):
            return arg.annotation.id
        if arg.arg == "config" and isinstance(arg.annotation, ast.Constant):
            return str(arg.annotation.value)
    return None


def _texts(node: ast.ClassDef) -> dict[str, str]:
    """Return the text under each field of a dataclass definition."""
    return {
        above.target.id: " ".join(text.value.value.split())
        for above, text in zip(node.body, node.body[1:])
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _bound(node: ast.stmt) -> list[str]:
    """List the names that a statement binds."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return [name]
        case ast.Import(names=names):
            return [a.asname or a.name.partition(".")[0] for a in names]
        case ast.ImportFrom(names=names, module=module) if module != "__future__":
            return [a.asname or a.name for a in names]
        case ast.Assign(targets=targets):
            return [t.id for t in targets if isinstance(t, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_dataclass(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(called, "id", getattr(called, "attr", None)) == "dataclass"


def _literal(node: ast.expr | None) -> tuple[bool, Any]:
    """Evaluate a literal; the flag tells None the value from "not a literal"."""
    try:
        return (True, ast.literal_eval(node)) if node is not None else (False, None)
    except ValueError:
        return False, None
