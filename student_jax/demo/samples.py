"""What the page is made of beside the student: its own files and the sample pictures."""

from pathlib import Path

from triplets.bundled import SAMPLES

PAGE = Path(__file__).parent / "page"
"""The page's own files, and in `runtime` what `npm run build` puts there."""

KINDS = ("content", "style")


def samples() -> dict[str, list[str]]:
    """Names of the sample pictures, by kind."""
    return {kind: sorted(path.name for path in (SAMPLES / kind).glob("*.jpg")) for kind in KINDS}
