"""Measure a teacher on held-out pictures: autoencoder, inversion, style and content distances."""

from command import run

from teacher_torch.mini.measure import MeasureConfig, measure_teacher

if __name__ == "__main__":
    run(measure_teacher, MeasureConfig, __doc__)
