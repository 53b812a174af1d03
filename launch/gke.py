"""Runs manas_jax on TPU slices or GPU nodes of a GKE cluster, as a JobSet.

    python launch/gke.py create --name=RUN --image=IMAGE --tpu=TYPE --topology=4x4 \\
        -- --config=FILE --workdir=/runs/DIR

`create` starts a run and `resume` starts it again after it has ended; in between, JobSet restarts
it automatically. `status` and `logs` show it. `delete` lets it save, and ends it; its files on the
volume stay. gke/jobset.yaml is the template; kubectl has to be configured for the cluster.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from common import (
    PREEMPTED,
    ROOT,
    Parser,
    at_least,
    check_run_flags,
    fail,
    redacted,
    shell_line,
    split_flags,
)

MOUNT = "/runs"  # of the volume
BUCKET = "gs://"
PORT = 8476


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments; returns the exit status of kubectl."""
    own, flags = split_flags(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(own)
    _check(options, flags)
    if options.dry_run:
        flags = redacted(flags)
    elif shutil.which("kubectl") is None:
        fail("kubectl is not installed; --dry-run works without it")
    for command, stdin in _commands(options, flags):
        if options.dry_run:
            print(shell_line(command) + (f" <<'END'\n{stdin}END" if stdin else ""))
        elif code := subprocess.run(command, input=stdin, text=True).returncode:
            return code
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="launch/gke.py",
        usage="%(prog)s COMMAND --name=NAME [OPTIONS] [-- --config=FILE --workdir=/runs/DIR ...]",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("command", choices=["create", "resume", "status", "logs", "delete"])
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--image", help="built with launch/Dockerfile, in a registry")
    parser.add_argument("--claim", default="runs", help="volume for the workdir; default: runs")
    parser.add_argument("--tpu", metavar="TYPE", help="such as tpu-v5-lite-podslice")
    parser.add_argument("--topology", help="of the slice, such as 4x4")
    parser.add_argument("--chips-per-host", type=at_least(1), default=4, help="default: 4")
    parser.add_argument("--gpu", metavar="TYPE", help="such as nvidia-h100-80gb")
    parser.add_argument("--nodes", type=at_least(1), default=1, help="with --gpu; default: 1")
    parser.add_argument("--gpus-per-node", type=at_least(1), default=8, help="default: 8")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be preempted at any time")
    parser.add_argument("--restarts", type=at_least(0), default=100, help="default: 100")
    parser.add_argument(
        "--grace", type=at_least(0), default=120, metavar="SECONDS", help="to save; default: 120"
    )
    parser.add_argument(
        "--secret", help="a Kubernetes Secret whose entries become environment variables"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    return parser


def _check(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Finds all mistakes on the command line before anything is created."""
    for name in ("name", "namespace", "claim", "secret"):
        value = getattr(options, name)
        if value is not None and not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", value):
            fail(f"--{name}={value}: give small letters, digits and dashes, 40 at most")
    if options.command not in ("create", "resume"):
        if flags:
            fail(f"{options.command} takes no flags after --")
        return
    if not options.image or re.search(r"\s", options.image):
        fail("--image=... is missing: build launch/Dockerfile and push it to a registry")
    if bool(options.tpu) == bool(options.gpu):
        fail("give either --tpu=TYPE --topology=AxB or --gpu=TYPE --nodes=N")
    if options.tpu:
        if not re.fullmatch(r"\d+x\d+(x\d+)?", options.topology or ""):
            fail(f"--topology={options.topology or ''}: give one, such as 4x4 or 2x2x4")
        if _chips(options) % options.chips_per_host:
            fail(
                f"--topology={options.topology} has {_chips(options)} chips, which are not whole "
                f"hosts of --chips-per-host={options.chips_per_host}"
            )
    check_run_flags(flags, ROOT)
    workdir = _workdir(flags)
    if not workdir.startswith((f"{MOUNT}/", BUCKET)):
        fail(
            f"--workdir={workdir}: give a folder under {MOUNT}, where the shared volume is, or one "
            f"in a bucket, {BUCKET}BUCKET/NAME"
        )


def _workdir(flags: Sequence[str]) -> str:
    return next(f.removeprefix("--workdir=") for f in flags if f.startswith("--workdir="))


def _chips(options: argparse.Namespace) -> int:
    return math.prod(int(side) for side in options.topology.split("x"))


def _commands(
    options: argparse.Namespace, flags: Sequence[str]
) -> list[tuple[list[str], str | None]]:
    """The commands, each with its standard input."""
    kubectl = ["kubectl", f"--namespace={options.namespace}"]
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={options.name}"
    delete = [  # returns after the pods have saved and are gone
        *(*kubectl, "delete", "jobset", options.name),
        *("--ignore-not-found", "--cascade=foreground"),
    ]
    match options.command:
        case "status":
            return [([*kubectl, "get", "jobset", options.name], None),
                    ([*kubectl, "get", "pods", pods, "--output=wide"], None)]  # fmt: skip
        case "logs":
            return [
                ([*kubectl, "logs", pods, "--prefix", "--follow", "--max-log-requests=64"], None)
            ]
        case "delete":
            return [(delete, None)]
    create = ([*kubectl, "create", "--filename=-"], manifest(options, flags))
    return [create] if options.command == "create" else [(delete, None), create]


def manifest(options: argparse.Namespace, flags: Sequence[str]) -> str:
    """gke/jobset.yaml with all values filled in."""
    if options.tpu:
        processes = _chips(options) // options.chips_per_host
        selector = {
            "cloud.google.com/gke-tpu-accelerator": options.tpu,
            "cloud.google.com/gke-tpu-topology": options.topology,
        }
        limits = {"google.com/tpu": options.chips_per_host}
        group = ["--distributed"]
        # All pods on one slice, and no other run's pods there.
        annotations = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    else:
        processes = options.nodes
        selector = {"cloud.google.com/gke-accelerator": options.gpu}
        limits = {"nvidia.com/gpu": options.gpus_per_node}
        # JAX finds the other processes on TPUs; here the coordinator has the name of the first pod.
        # Kubernetes inserts the index of the pod.
        group = [
            f"--coordinator={options.name}-worker-0-0.{options.name}:{PORT}",
            f"--processes={processes}",
            "--process=$(JOB_COMPLETION_INDEX)",
        ]
        annotations = {}
    tolerations = []
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations = [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}]
    if (workdir := _workdir(flags)).startswith(BUCKET):
        # Programs are compiled once for all runs that continue there.
        cache = f"{workdir.rstrip('/')}/compilation_cache"
        variables, mounts, volumes = [{"name": "JAX_COMPILATION_CACHE_DIR", "value": cache}], [], []
    else:
        variables, mounts = [], [{"name": "runs", "mountPath": MOUNT}]
        volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}}]
    values = {
        "name": options.name,
        "annotations": annotations,
        "restarts": options.restarts,
        "preempted": PREEMPTED,
        "processes": processes,
        "grace": options.grace,
        "variables": variables,
        "mounts": mounts,
        "volumes": volumes,
        "image": options.image,
        "node_selector": selector,
        "tolerations": tolerations,
        "args": [*(group if processes > 1 else []), *flags],
        "environment": [{"secretRef": {"name": options.secret}}] if options.secret else [],
        "limits": limits,
    }
    template = string.Template((ROOT / "launch" / "gke" / "jobset.yaml").read_text())
    return template.substitute({name: _yaml(value) for name, value in values.items()})


def _yaml(value: Any) -> str:
    """JSON, which is YAML but for the escapes of characters beyond 16 bits, such as emoji."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[^\x20-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", text)


if __name__ == "__main__":
    sys.exit(main())
