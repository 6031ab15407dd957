"""What benchmarks leave: a table in RESULTS.md, between the two comment lines that carry its name, and the figures of single runs."""

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(name: str, text: str, results: Path = RESULTS) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`; a name that is new is appended."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = results.read_text(encoding="utf-8") if results.exists() else "# Results\n"
    section = f"{opening}\n{text.strip()}\n{closing}"
    if opening in page:
        before, after = page.partition(opening)[0], page.partition(closing)[2]
        page = before + section + after
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    results.write_text(page, encoding="utf-8")


def keep(record: Path, values: dict[str, float]) -> None:
    """Write the figures of one run into a JSON file, whole or not at all."""
    part = record.parent / f"{record.name}.part"
    part.write_text(json.dumps(values))
    part.replace(record)
