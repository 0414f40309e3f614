from teacher_torch import StyleIDConfig
from teacher_torch.styleid.memory import memory_need


def test_need_of_the_tiny_model(components):
    need = memory_need(
        components.unet,
        components.vae,
        StyleIDConfig(num_steps=3, injection_layers=(6, 9)),
        size_px=64,
        contents=2,
        styles=3,
        pairs=4,
    )
    # 8 x 8 latents; layer 6 sees a quarter of its 64 tokens, layer 9 all; 8 channels, float32.
    # Contents leave queries, styles keys and values.
    features = (16 + 64) * 8 * 4 * (2 + 2 * 3)
    latents = ((2 + 3) * (3 + 1) + 4 * 4) * 4 * 64 * 4
    assert need.step == features + latents
    parameters = [*components.unet.parameters(), *components.vae.parameters()]
    assert need.weights == sum(4 * p.numel() for p in parameters)
    assert need.total(5) == need.weights + max(need.step + 5 * need.row, need.picture)
