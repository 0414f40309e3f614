"""Measure a model on held-out pictures: PSNR of its autoencoder, and of inversion and back."""

from command import run

from teacher_torch.mini.measure import MeasureConfig, measure_model

if __name__ == "__main__":
    run(measure_model, MeasureConfig, __doc__)
