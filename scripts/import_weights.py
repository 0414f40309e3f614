"""Make a student of published weights: the STTR checkpoint, or ImageNet backbones."""

from command import run

from student_jax.students.sttr.published import ImportConfig, import_weights

if __name__ == "__main__":
    run(import_weights, ImportConfig, __doc__)
