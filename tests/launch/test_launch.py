"""What the launchers share: missing tools, exit statuses, linters, the container, the README."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from launchers import LAUNCH, RUN, assert_refused, launch

from manas_jax.runtime import signals

ON_VOLUME = [
    *["--name=x", "--image=reg/manas:1", "--tpu=tpu-v5-lite-podslice", "--topology=4x4"],
    *["--", "--config=configs/tiny.py", "--workdir=/runs/x"],
]


@pytest.mark.parametrize(
    ("script", "arguments", "tool"),
    [
        ("tpu.sh", ["delete", "--name=x", "--project=p", "--zone=us-west4-a"], "gcloud"),
        ("slurm.sh", ["--nodes=2", "--gpus-per-node=4", "--time=4:00:00", *RUN], "sbatch"),
        ("gke.py", ["create", *ON_VOLUME], "kubectl"),
    ],
)
def test_missing_tool_is_one_line(tmp_path, script, arguments, tool):
    for name in ("bash", "dirname", "git"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(tmp_path)}
    finished = launch(script, *arguments, env=environment)
    assert_refused(finished, f"{tool} is not installed; --dry-run works without it")
    dry = launch(script, arguments[0], "--dry-run", *arguments[1:], env=environment)
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith(tool)


def test_secrets_are_printed_by_no_launcher():
    """Of flags, variables and URLs; by the function in Python and by its counterpart in bash."""
    cases = {
        "--config=configs/token.py": "--config=configs/token.py",
        "--config.api_key=hush": "--config.api_key=***",
        "HF_TOKEN=hush": "HF_TOKEN=***",
        "--data.root=https://me:h@sh@host/a?Token=hush&b=2&sig=hush":
            "--data.root=https://***@host/a?Token=***&b=2&sig=***",
        "gs://bucket/a?x=1": "gs://bucket/a?x=1",
        "--token": "--token",
        "hush": "***",
        "last": "last",
    }  # fmt: skip
    code = "import sys, common; print(*common.redacted(sys.argv[1:]), sep='\\n')"
    script = '. ./common.sh; redact "$@"; printf "%s\\n" "${redacted[@]}"'
    for command in ([sys.executable, "-c", code], ["bash", "-c", script, "bash"]):
        printed = subprocess.check_output([*command, *cases], cwd=LAUNCH, text=True)
        assert printed.splitlines() == list(cases.values())


@pytest.mark.parametrize("name", ["PREEMPTED", "CANCELLED"])
def test_exit_statuses_are_those_of_the_package(name):
    for file in ("common.py", "common.sh"):
        text = (LAUNCH / file).read_text()
        (value,) = re.findall(rf"^{name} *= *(\d+)", text, re.MULTILINE)
        assert int(value) == getattr(signals, name)


def checker(name):
    """A linter of requirements-dev.txt."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return shutil.which(name, path=path) or pytest.skip(f"{name}: see requirements-dev.txt")


def test_shell_scripts_pass_shellcheck():
    files = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"]
    assert len(files) >= 5
    found = subprocess.run(
        [checker("shellcheck"), "--external-sources", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_dockerfile_passes_hadolint():
    found = subprocess.run(
        [checker("hadolint"), str(LAUNCH / "Dockerfile")], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_dockerfile_copies_what_dockerignore_admits():
    """Every source exists and is admitted, and nothing else is."""
    text = (LAUNCH / "Dockerfile").read_text()
    sources = [
        word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()
    ]
    assert {"manas_jax", "configs"} <= set(sources)
    assert all(list(ROOT.glob(source)) for source in sources)
    rules = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if not rule.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(sources)
    for accelerator in ("gpu", "tpu"):
        assert (ROOT / f"requirements-{accelerator}.txt").is_file()


def test_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    for file in LAUNCH.rglob("*"):
        if file.is_file() and file.suffix != ".pyc" and file.name != "README.md":
            assert f"({file.relative_to(LAUNCH)})" in text, file
