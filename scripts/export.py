"""Export a student as safetensors, StableHLO and ONNX."""

from command import run

from student_jax.export.export import ExportConfig, export

if __name__ == "__main__":
    run(export, ExportConfig, __doc__)
