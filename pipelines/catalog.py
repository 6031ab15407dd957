"""The YAML files under configs/: which choices a group has, and what each is for. Reads no YAML, so listings stay fast."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "configs"  # not `import configs`: many projects have a folder of that name


def path_of(group: str, choice: str) -> Path:
    """Name the file of one choice; the file need not exist."""
    return ROOT / group / f"{choice}.yaml"


def label_of(group: str, choice: str) -> str:
    """Name the file of one choice as messages show it, the same on every machine."""
    return f"configs/{group}/{choice}.yaml"


def choices_of(group: str) -> list[str]:
    """List the choices of a group in alphabetical order."""
    return sorted(path.stem for path in (ROOT / group).glob("*.yaml"))


def summary_of(group: str, choice: str) -> str:
    """Take the one-line description of a choice from the comment that opens its file."""
    with path_of(group, choice).open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""
