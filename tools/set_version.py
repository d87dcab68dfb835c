"""Write one version everywhere it stands: four packages, the pins between them, the citation.

    python tools/set_version.py 0.2.0

The head of CHANGELOG.md is written by hand; the script says so if it lacks the version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("esbnn-core", "esbnn-cls", "esbnn-det", "esbnn-sr")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", arguments[0]):
        print("usage: python tools/set_version.py MAJOR.MINOR.PATCH", file=sys.stderr)
        return 2
    version = arguments[0]
    for package in PACKAGES:
        path = ROOT / "packages" / package / "pyproject.toml"
        text = re.sub(r'(?m)^version = "[^"]+"', f'version = "{version}"', path.read_text(), count=1)
        path.write_text(re.sub(r'"esbnn-core==[^"]+"', f'"esbnn-core=={version}"', text))
    citation = ROOT / "CITATION.cff"
    citation.write_text(re.sub(r"(?m)^version: .*", f"version: {version}", citation.read_text()))
    if f"## {version}" not in (ROOT / "CHANGELOG.md").read_text():
        print(f"CHANGELOG.md has no heading for {version} yet: write what changed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
