"""Files that both worlds read: the sample pictures and the small perceptual networks' weights.

`SAMPLES` holds `content/` and `style/` pictures; `WEIGHTS` holds safetensors with torchvision's
parameter names. The SOURCES.md in each names the origin and licence of every file.
"""

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
WEIGHTS = Path(__file__).parent / "weights"
