"""launch/gke.py with a fake kubectl; manifests are checked against schemas."""

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launchers import LAUNCH, RUN, FakeTools, assert_refused, launch


@pytest.fixture
def tools(tmp_path):
    return FakeTools(tmp_path / "bin")


POD = ["--name=x", "--image=reg/manas:1"]
SLICE = [*POD, "--tpu=tpu-v5-lite-podslice", "--topology=4x4"]
GPUS = [*POD, "--gpu=nvidia-h100-80gb", "--nodes=2"]
ON_VOLUME = ["--", "--config=configs/tiny.py", "--workdir=/runs/x"]


def fields(required, **properties):
    """Schema of an object of these fields and no others."""
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


# The fields of a JobSet that are used, by https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2.
# The fields of a Job are checked by the schema of Kubernetes.
JOBSET = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields(
        ["name"],
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=fields(
        ["replicatedJobs", "failurePolicy"],
        failurePolicy=fields(
            ["maxRestarts"],
            maxRestarts={"type": "integer", "minimum": 0},
            rules={
                "type": "array",
                "items": fields(
                    ["name", "action"],
                    name={
                        "type": "string",
                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    },
                    action={
                        "enum": [
                            "FailJobSet",
                            "RestartJobSet",
                            "RestartJobSetAndIgnoreMaxRestarts",
                        ]
                    },
                    onJobFailureReasons={
                        "type": "array",
                        "uniqueItems": True,
                        "items": {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        },
                    },
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": fields(
                ["name", "template"],
                name={"type": "string"},
                replicas={"type": "integer", "minimum": 1},
                template=fields(["spec"], spec={"type": "object"}),
            ),
        },
    ),
)


def manifest(*arguments):
    """What a dry run of `create` prints, checked against the schemas."""
    finished = launch("gke.py", "create", "--dry-run", *arguments)
    assert finished.returncode == 0, finished.stderr
    first, *lines, last = finished.stdout.splitlines()
    assert first == "kubectl --namespace=default create --filename=- <<'END'"
    assert last == "END"
    jobset = yaml.safe_load("\n".join(lines))
    jsonschema.validate(jobset, JOBSET)
    (job,) = jobset["spec"]["replicatedJobs"]
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **job["template"]}
    assert kubernetes_validate.validate(as_job, "1.33", strict=True) == "1.33"
    return jobset


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(jobset):
    return job_of(jobset)["template"]["spec"]


def test_tpu_manifest():
    jobset = manifest(*SLICE, "--spot", *ON_VOLUME)
    job = job_of(jobset)
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = pod_of(jobset)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == ["--distributed", *ON_VOLUME[1:]]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]


def test_workdir_in_a_bucket_needs_no_volume():
    pod = pod_of(manifest(*SLICE, "--", "--config=configs/tiny.py", "--workdir=gs://bucket/x"))
    (container,) = pod["containers"]
    cache = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://bucket/x/compilation_cache"}
    assert container["env"] == [cache]
    assert container["volumeMounts"] == pod["volumes"] == []


def test_gpu_manifest():
    jobset = manifest(*GPUS, "--gpus-per-node=8", "--secret=keys", *ON_VOLUME)
    pod = pod_of(jobset)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = pod["containers"]
    assert container["args"] == [
        "--coordinator=x-worker-0-0.x:8476",
        "--processes=2",
        "--process=$(JOB_COMPLETION_INDEX)",
        *ON_VOLUME[1:],
    ]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_one_process_needs_no_coordinator():
    one = manifest(*POD, "--tpu=t", "--topology=2x4", "--chips-per-host=8", *ON_VOLUME)
    assert pod_of(one)["containers"][0]["args"] == ON_VOLUME[1:]


def test_restart_policy():
    jobset = manifest(*SLICE, "--restarts=7", "--grace=90", *ON_VOLUME)
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["values"] == [1, 2]  # so neither 75 nor 128 and more
    assert rule["onExitCodes"]["containerName"] == pod_of(jobset)["containers"][0]["name"]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod_of(jobset)["restartPolicy"] == "Never"
    assert pod_of(jobset)["terminationGracePeriodSeconds"] == 90


def test_volume_is_valid():
    claim = yaml.safe_load((LAUNCH / "gke" / "volume.yaml").read_text())
    assert kubernetes_validate.validate(claim, "1.33", strict=True) == "1.33"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["name"] == "runs"  # the default of gke.py


SELECTED = "--selector=jobset.sigs.k8s.io/jobset-name=x"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("status", ["get jobset x", f"get pods {SELECTED} --output=wide"]),
        ("logs", [f"logs {SELECTED} --prefix --follow --max-log-requests=64"]),
        ("delete", ["delete jobset x --ignore-not-found --cascade=foreground"]),
    ],
)
def test_dry_run(tools, command, expected):
    finished = tools.launch("gke.py", command, "--name=x", "--namespace=n", "--dry-run")
    lines = finished.stdout.splitlines()
    assert lines == [f"kubectl --namespace=n {line}" for line in expected], finished.stderr
    assert tools.calls() == []


def test_creates_what_the_dry_run_shows(tools):
    arguments = [*SLICE, *ON_VOLUME]
    shown = tools.launch("gke.py", "resume", "--dry-run", *arguments).stdout
    finished = tools.launch("gke.py", "resume", *arguments)
    assert finished.returncode == 0, finished.stderr
    delete, create = tools.calls()
    assert delete.words[1:3] == ["delete", "jobset"]
    assert create.words == ["--namespace=default", "create", "--filename=-"]
    assert f"<<'END'\n{create.piped}END\n" in shown


def test_resume_creates_nothing_if_delete_failed(tools):
    tools.plan(delete=[3], create=[0])
    assert tools.launch("gke.py", "resume", *SLICE, *ON_VOLUME).returncode == 3
    assert tools.verbs() == ["delete"]


def test_characters_of_all_kinds_reach_the_pods():
    odd = "--config.name=\U0001f327 \u00fc \x7f \x85 'a' \"b\" \\"
    jobset = manifest(*GPUS, *ON_VOLUME, odd)
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == odd


def test_redacts_secrets():
    run = [*ON_VOLUME, "--config.a.password=hush", "--api-key", "hush"]
    finished = launch("gke.py", "create", "--dry-run", *SLICE, *run)
    assert '"--config.a.password=***", "--api-key", "***"' in finished.stdout
    assert "hush" not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", *SLICE, *ON_VOLUME], "invalid choice: 'make'"),
        (["create", *ON_VOLUME], "--name"),
        (["create", *SLICE, "--name=A b", *ON_VOLUME], "--name=A b: give small letters"),
        (["create", SLICE[0], *SLICE[2:], *ON_VOLUME], "--image=... is missing"),
        (["create", *POD, *ON_VOLUME], "give either --tpu"),
        (["create", *SLICE, "--gpu=t", *ON_VOLUME], "give either --tpu"),
        (["create", *POD, "--tpu=t", *ON_VOLUME], "--topology=: give one"),
        (["create", *POD, "--tpu=t", "--topology=2x3", *ON_VOLUME], "has 6 chips"),
        (["create", *SLICE, "--restarts=x", *ON_VOLUME], "'x' is no whole number"),
        (["create", *SLICE, *RUN], "--workdir=runs/x: give a folder under /runs"),
        (["create", *SLICE, *ON_VOLUME, "--process=0"], "--process is set by the launcher"),
        (["delete", "--name=x", *ON_VOLUME], "delete takes no flags"),
    ],
)
def test_refuses_before_anything_is_created(tools, arguments, message):
    assert_refused(tools.launch("gke.py", *arguments), message)
    assert tools.calls() == []
