"""The two worlds stay apart: what each package may import, checked in fresh interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = ("torch", "diffusers", "transformers", "teacher_torch")
JAX = ("jax", "flax", "student_jax", "losses")
RULES = {
    "triplets": ("torch", "jax", "tensorflow", "diffusers", "style_distil"),
    "losses": ("torch", "flax", "student_jax", "teacher_torch", "triplets"),
    "experiments": (*TORCH, "tensorflow"),
    "student_jax": (*TORCH, "experiments", "tensorflow", "style_distil"),
    "teacher_torch": (*JAX, "experiments", "tensorflow", "style_distil"),
    "style_distil": (*TORCH, *JAX, "triplets", "numpy", "experiments", "tensorflow"),
}
IMPORT_ALL = """
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(module.name)
"""


def imported(program, names):
    """Which of the names a fresh interpreter has imported after the program."""
    program += f"\nimport sys; print([name for name in {names!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return result.stdout.strip()


@pytest.mark.parametrize("package", RULES)
def test_package_never_imports(package):
    assert imported(IMPORT_ALL.format(package=package), RULES[package]) == "[]"


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("scripts/*.py")))
def test_script_imports_the_command_alone(script):
    program = f"import runpy; runpy.run_path('scripts/{script}', run_name='imported')"
    assert imported(program, RULES["style_distil"]) == "[]"


def test_promised_scripts():
    names = {path.name for path in ROOT.glob("scripts/*")} - {"__pycache__"}
    assert names == {"dump_teacher.py", "release.py", "stylize.py", "train_flax.py"}
