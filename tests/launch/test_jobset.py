"""The JobSet of `gramjax launch gke`: a valid one, on the nodes that were asked for, restarted only when that helps."""

import json
from pathlib import Path

import pytest
import yaml

from gramjax.core import launching
from gramjax.core.errors import DataError, DoNotRequeue, UserError

HERE = Path(__file__).parent
WORDS = ("--config=quickstart", "--workdir=/runs/it's \"x\"", "--config.data.train=('a: b', '#c')")


def jobset(topology="v5e:4x4", words=WORDS, verb="train", variables=None, **options):
    """The manifest as it is read, checked against the schema."""
    given = launching.Gke(**{"topology": topology, "image": "lab/gramjax:1", "claim": "disk:/runs", **options})
    made = launching.gke(given, launching.Command(verb, words, variables or {}))
    found = yaml.safe_load(made.text)
    schema = pytest.importorskip("jsonschema_rs", reason="checks the manifest (gramjax[dev] brings it)")
    schema.validator_for(json.loads((HERE / "jobset_schema.json").read_text())).validate(found)
    return found


def job_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job, job["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)[1]["template"]["spec"]


def test_the_schema_refuses_what_is_misspelt():
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="checks the manifest (gramjax[dev] brings it)")
    validator = jsonschema_rs.validator_for(json.loads((HERE / "jobset_schema.json").read_text()))
    found = jobset()
    assert validator.is_valid(found)
    pod_of(found)["terminationGracePeriod"] = 30
    assert not validator.is_valid(found)
    found = jobset()
    job_of(found)[1]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = [0]
    assert not validator.is_valid(found)


@pytest.mark.parametrize(
    "topology,hosts,each,nodes,shape",
    [("v5e:2x2", 1, 4, "tpu-v5-lite-podslice", "2x2"), ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice", "2x4"),
     ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice", "4x4"), ("v6e:8x8", 16, 4, "tpu-v6e-slice", "8x8"),
     ("v5p:4x4x4", 16, 4, "tpu-v5p-slice", "4x4x4"), ("v5p:2x2x1", 1, 4, "tpu-v5p-slice", "2x2x1")],
)  # fmt: skip
def test_tpu_slices(topology, hosts, each, nodes, shape):
    found = jobset(topology)
    job, spec = job_of(found)
    pod = pod_of(found)
    assert (job["replicas"], spec["completions"], spec["parallelism"]) == (1, hosts, hosts)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": nodes,
                                   "cloud.google.com/gke-tpu-topology": shape}  # fmt: skip
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": str(each)}
    joined = ["--distributed=auto"] if hosts > 1 else []
    assert container["command"] == ["gramjax", "train", *WORDS, f"--devices={hosts * each}", *joined]


def test_several_slices_are_one_job_on_a_node_pool_each():
    found = jobset(slices=3)
    assert job_of(found)[0]["replicas"] == 3 and "--devices=48" in pod_of(found)["containers"][0]["command"]
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}  # fmt: skip


def test_gpus_meet_on_the_first_pod():
    found = jobset("h100:16", name="judge")
    job, spec = job_of(found)
    (container,) = pod_of(found)["containers"]
    assert spec["completions"] == 2 and container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert pod_of(found)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    # The host name of a pod is JobSet, job, number of the job, number of the pod; its domain is the JobSet.
    assert variables["JAX_COORDINATOR_ADDRESS"].split(":")[0] == f"judge-{job['name']}-0-0.judge"
    assert variables["JAX_NUM_PROCESSES"] == "2" and "JAX_PROCESS_ID" in variables
    assert spec["completionMode"] == "Indexed" and found["spec"]["network"]["enableDNSHostnames"]
    assert "--distributed=auto" not in container["command"] and "--devices=16" in container["command"]
    assert pod_of(jobset("h100:8"))["containers"][0]["env"] == []


def test_it_fails_on_the_codes_that_no_restart_mends_and_restarts_on_all_others():
    found = jobset(restarts=7, grace=90)
    policy, (_, spec) = found["spec"]["failurePolicy"], job_of(found)
    (rule,) = spec["podFailurePolicy"]["rules"]
    final = sorted(error.exit_code for error in (UserError, DataError, DoNotRequeue))
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == final
    assert rule["onExitCodes"]["containerName"] == pod_of(found)["containers"][0]["name"]
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert policy["maxRestarts"] == 7 and spec["backoffLimit"] == 0
    # Kubernetes takes a pod failure policy only with this restart policy.
    assert pod_of(found)["restartPolicy"] == "Never" and pod_of(found)["terminationGracePeriodSeconds"] == 90


def test_runs_lie_on_the_disk_that_stays():
    pod = pod_of(jobset())
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"] == "disk"
    assert set(mounts.values()) == set(volumes)
    with pytest.raises(UserError, match="a restart would begin anew"):
        jobset(words=("--config=quickstart", "--workdir=/elsewhere/x"))
    with pytest.raises(UserError, match="a restart would begin anew"):
        jobset(words=("--config", "quickstart", "--workdir", "/runs_too/x"))


def test_variables_spot_and_names():
    flags = "--xla_a=1 --xla_b={x: 'y'}"
    found = jobset(variables={"LIBTPU_INIT_ARGS": flags}, spot=True, namespace="lab")
    assert pod_of(found)["containers"][0]["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": flags}]
    assert pod_of(found)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert [t["key"] for t in pod_of(found)["tolerations"]] == ["cloud.google.com/gke-spot"]
    assert found["metadata"] == {**found["metadata"], "name": "gramjax-quickstart", "namespace": "lab"}


@pytest.mark.parametrize(
    "given,said",
    [({"topology": "h100:12"}, "do not fill hosts of 8"), ({"topology": "cpu:8"}, "expected a TPU slice or GPUs"),
     ({"topology": "h100:8", "slices": 2}, "belongs to a TPU topology"), ({"claim": "disk"}, "expected CLAIM:PATH"),
     ({"name": "Judge_1"}, "lower-case letters"), ({"image": ""}, "give --image="), ({"verb": "serve"}, "one process"),
     ({"topology": "v5e:4x4x4"}, "has 2 dimensions")],
)  # fmt: skip
def test_what_cannot_be_launched(given, said):
    with pytest.raises(UserError, match=said):
        jobset(**given)
