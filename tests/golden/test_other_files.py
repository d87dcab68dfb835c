"""Files of golden vectors that no test above reads are named, so that nothing is left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import folder

pytestmark = pytest.mark.golden

READ_ELSEWHERE = ("torchvision_ops",)  # tests/core/test_torchvision.py
OTHERS = [
    path
    for path in sorted(folder().iterdir())
    if path.suffix in (".npz", ".json") and not path.stem.startswith("modules_") and path.stem not in READ_ELSEWHERE
]


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: p.name)
def test_file(path: Path) -> None:
    pytest.skip(f"not built: what {path.name} is about")
