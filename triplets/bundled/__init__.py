"""Files that both worlds read: the sample pictures and the small perceptual networks' weights.

`SAMPLES` holds `content/` and `style/` pictures (see samples/SOURCES.md); `WEIGHTS` holds float16
safetensors with torchvision's parameter names (see weights/SOURCES.md).
"""

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
WEIGHTS = Path(__file__).parent / "weights"
