"""Runs the launchers, and fakes the tools that they call: no cloud, no cluster."""

import collections
import json
import os
import subprocess
import sys

from conftest import ROOT

LAUNCH = ROOT / "launch"
RUN = ["--", "--config=configs/tiny.py", "--workdir=runs/x"]
SECRET_FLAGS = [*RUN, "--config.name=a b", "--config.api_key=hush", "--token", "hush"]


def launch(script, *arguments, root=ROOT, **options):
    """Runs a launcher from the repository's root."""
    program = [sys.executable] if script.endswith(".py") else ["bash"]
    return subprocess.run(
        [*program, str(root / "launch" / script), *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def assert_refused(finished, message):
    """Asserts an error in one line, a status that is not restarted, no traceback."""
    assert finished.returncode not in (0, 75), finished.stdout
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1


# Records its arguments and input, then does what the plan says for this call: exits with a status,
# or prints a state. With "worker", commands for a worker run in that folder.
FAKE = """#!{python} -IS
import json, pathlib, shutil, subprocess, sys
folder = pathlib.Path(__file__).parent
name, words = pathlib.Path(__file__).name, sys.argv[1:]
piped = sys.stdin.read() if "--filename=-" in words else ""
plan = json.loads((folder / "plan").read_text())
verb = next((word for word in words if word in plan), "")
with (folder / "calls").open("a") as file:
    print(json.dumps([name, verb, words, piped]), file=file)
count = sum(json.loads(line)[1] == verb for line in (folder / "calls").open())
outcomes = plan.get(verb) or [0]
outcome = outcomes[min(count, len(outcomes)) - 1]
if isinstance(outcome, str):
    print(outcome or "ERROR: NOT_FOUND: no such thing", file=sys.stdout if outcome else sys.stderr)
    sys.exit(outcome == "")
if "worker" in plan:
    if "scp" in words:
        shutil.copy(words[4], pathlib.Path(plan["worker"]) / words[5].split(":")[1])
    elif "ssh" in words:
        command = next(word[10:] for word in words if word.startswith("--command="))
        sys.exit(subprocess.run(["bash", "-c", command], cwd=plan["worker"]).returncode)
sys.exit(outcome)
"""

Call = collections.namedtuple("Call", "name verb words piped")


class FakeTools:
    """Fakes of gcloud and other tools, first on the PATH of `environment`."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "sleep"):
            program = folder / name
            program.write_text(FAKE.replace("{python}", sys.executable))
            program.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        self.plan()

    def plan(self, **outcomes):
        """Sets the outcomes of each verb's calls, the last repeated, and forgets earlier calls."""
        (self.folder / "plan").write_text(json.dumps(outcomes))
        (self.folder / "calls").write_text("")

    def calls(self):
        lines = (self.folder / "calls").read_text().splitlines()
        return [Call(*json.loads(line)) for line in lines]

    def verbs(self):
        """The verbs of the calls that are in the plan."""
        return [call.verb for call in self.calls() if call.verb]

    def launch(self, script, *arguments, **options):
        return launch(script, *arguments, env=self.environment, **options)
