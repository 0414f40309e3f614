"""Pre-train the mini teacher, a small latent diffusion model, on two folders of pictures."""

from command import run

from teacher_torch.mini.pretrain import PretrainConfig, pretrain

if __name__ == "__main__":
    run(pretrain, PretrainConfig, __doc__)
