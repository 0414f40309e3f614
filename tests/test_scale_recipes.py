"""The recipes in docs/scale: each as its own schema or client sees it, and each names real flags.

Schemas and clients that the set-up does not install are used where they are there: kubernetes-
validate, Ray, and SkyPilot, whose own environment the variable SKYPILOT_PYTHON points to.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import preemption
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "docs" / "scale"
SHELL = sorted(FOLDER.glob("*.sh"))
COMMAND = re.compile(r"style-distil dump((?:\s*\\\n|[^\n|;&])*)")

CHECK_FLAGS = """
import json, sys, tyro
from teacher_torch.dump import dump_config_type
for words in json.load(sys.stdin):
    tyro.cli(dump_config_type(), args=words)
"""


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def commands() -> list[list[str]]:
    """The arguments of each dump in the recipes, with a number in the place of a variable."""
    job = load("kubernetes.yaml")["spec"]["template"]["spec"]["containers"][0]
    texts = [path.read_text() for path in SHELL] + [load("skypilot.yaml")["run"]]
    found = [match for text in texts for match in COMMAND.findall(text)]
    lines = [re.sub(r"\$\(\([^)]*\)\)", "1", match.replace("\\\n", " ")) for match in found]
    # The rank is checked against the world size: 1 of 2.
    lines = [line.replace("--world-size 1", "--world-size 2") for line in lines]
    lines.append(shlex.join(job["args"]).replace("$(JOB_COMPLETION_INDEX)", "1"))
    return [[word for word in shlex.split(line) if word not in ("", "#")] for line in lines]


def test_every_recipe_is_in_the_page():
    page = (FOLDER.parent / "scale.md").read_text()
    assert {path.name for path in FOLDER.iterdir()} == set(re.findall(r"scale/([\w.-]+)\)", page))


def test_recipes_name_real_flags():
    assert len(commands()) == 4
    done = subprocess.run(
        [sys.executable, "-c", CHECK_FLAGS],
        input=json.dumps(commands()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_job_of_kubernetes():
    spec = load("kubernetes.yaml")["spec"]
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    assert f"--world-size={spec['completions']}" in arguments
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert failed["onExitCodes"]["values"] == [2]  # wrong usage, as style_distil.command has it
    assert spec["completionMode"] == "Indexed" and "backoffLimitPerIndex" in spec


# What has the schemas takes 100 to 200 MB each, so the tests' set-up does not install it.


@pytest.mark.slow
def test_the_job_of_kubernetes_by_its_schema():
    validate = pytest.importorskip(
        "kubernetes_validate",
        reason="the schemas of Kubernetes take 120 MB: pip install kubernetes-validate",
    )
    validate.validate(load("kubernetes.yaml"), "1.33", strict=True)


@pytest.mark.slow
def test_the_cluster_of_ray_by_its_schema():
    ray = pytest.importorskip(
        "ray", reason='Ray takes 200 MB, too much for the set-up: pip install -e ".[ray]"'
    )
    import jsonschema  # comes with Ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(load("ray-cluster.yaml"), schema)


@pytest.mark.slow
def test_the_task_of_skypilot_by_its_parser():
    if "SKYPILOT_PYTHON" not in os.environ:
        pytest.skip(
            "SkyPilot's pins conflict with ours: install it in an environment of its own, and "
            "name its interpreter in SKYPILOT_PYTHON"
        )
    program = "import sky, sys; print(sky.Task.from_yaml(sys.argv[1]).num_nodes)"
    command = [os.environ["SKYPILOT_PYTHON"], "-c", program, FOLDER / "skypilot.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip().endswith("8"), done.stderr


def settings(**changes) -> preemption.SimulationConfig:
    plain = {"shards": 10, "shard_minutes": 6.0, "workers": 2, "rate": 0.0}
    return preemption.SimulationConfig(**plain | {"start_minutes": 0.0, "spread": 0.0} | changes)


def test_a_simulation_without_preemption():
    """10 shards of 6 minutes: half an hour for two workers; 3 tasks are 4, 3 and 3 of them."""
    assert preemption.simulate(settings(), 10, 0).hours == pytest.approx(0.5)
    outcome = preemption.simulate(settings(), 3, 0)
    assert outcome.hours == pytest.approx(0.6)  # the second makes 3 and 3
    assert outcome.idle_hours == pytest.approx(0.2)
    outcome = preemption.simulate(settings(start_minutes=6.0), 10, 0)
    assert outcome.hours == pytest.approx(1.0)


def test_a_simulation_with_preemption():
    """Every shard is made in the end, a worker never loses more than one at a time."""
    config = settings(rate=5.0, replacement_minutes=1.0)
    outcome = preemption.simulate(config, 5, 0)
    assert outcome.hours > 0.5 and outcome.preemptions > 0
    assert outcome.lost_hours <= outcome.preemptions * 0.1
    assert outcome == preemption.simulate(config, 5, 0)
