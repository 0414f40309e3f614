"""Pre-train the mini teacher, a small latent diffusion model, on two folders of pictures."""

import tyro

from teacher_torch.pretrain import PretrainConfig, pretrain

if __name__ == "__main__":
    pretrain(tyro.cli(PretrainConfig, description=__doc__))
