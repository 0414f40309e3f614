"""The two worlds stay apart: what each package may import, checked in fresh interpreters."""

import subprocess
import sys

import pytest

RULES = {
    "triplets": ("torch", "jax", "tensorflow", "diffusers"),
    "losses": ("torch", "flax", "student_jax", "teacher_torch", "triplets"),
    "experiments": ("torch", "diffusers", "transformers", "teacher_torch", "tensorflow"),
    "student_jax": (
        "torch",
        "diffusers",
        "transformers",
        "teacher_torch",
        "experiments",
        "tensorflow",
    ),
    "teacher_torch": ("jax", "flax", "student_jax", "losses", "experiments", "tensorflow"),
}


@pytest.mark.parametrize("package", RULES)
def test_package_never_imports(package):
    program = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(module.name)
print([name for name in {RULES[package]!r} if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
