"""Where things lie in the tree."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "worker" / "coatstream"
ASSETS: Final = PACKAGE / "assets"
DOCS: Final = ROOT / "docs"
STREAMS: Final = Path(__file__).parent / "cameras"  # clips that the fake cameras serve
