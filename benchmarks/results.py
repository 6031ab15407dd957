"""Write a benchmark's table into RESULTS.md, between the two comment lines that carry its name."""

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
