"""A student for other programs: safetensors, StableHLO, ONNX."""
