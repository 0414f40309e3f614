import pytest

from teacher_torch import StyleIDConfig


def test_presets_are_the_official_programs():
    assert StyleIDConfig.paper() == StyleIDConfig(50, 0.75, 1.5, (6, 7, 8, 9, 10, 11), "paper")
    assert StyleIDConfig.port() == StyleIDConfig(20, 0.75, 1.5, (7, 8, 9, 10, 11), "port")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", 1, "expected 2 to 999"),
        ("gamma", 1.5, "gamma is 1.5; expected 0"),
        ("temperature", 0.0, "expected a positive number"),
        ("temperature", float("inf"), "expected a positive number"),
        ("injection_layers", (), "injection_layers is empty"),
        ("injection_layers", (2, 12), r"\[2, 12\] do not exist"),
        ("injection_layers", (7, 7), "repeats a layer"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        StyleIDConfig(**{field: value})
