"""Write a student as a state_dict of STTR's authors, in a safetensors file."""

from command import run

from student_jax.students.sttr.published import ExportConfig, export_weights

if __name__ == "__main__":
    run(export_weights, ExportConfig, __doc__)
