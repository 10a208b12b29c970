"""Checks of deploy/kubernetes that no schema makes: what refers to what, our own keys, and the shape of KEDA's objects."""
import json, os, re, subprocess
import yaml

FOLDER = "deploy/kubernetes"
# https://keda.sh/docs/latest/reference/scaledobject-spec/ and .../scalers/metrics-api/
SPEC = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers", "advanced"}
METADATA = {"url", "format", "valueLocation", "targetValue"}


def load(file):
    with open(f"{FOLDER}/{file}") as stream:
        return [document for document in yaml.safe_load_all(stream) if document]


listed = load("kustomization.yaml")[0]["resources"]
assert set(listed) == set(os.listdir(FOLDER)) - {"kustomization.yaml"}, f"kustomization.yaml lists {listed}"
everything = {(it["kind"], it["metadata"]["name"]): it for file in listed for it in load(file)}
of_kind = lambda kind: {name: it for (this, name), it in everything.items() if this == kind}

for name, deployment in of_kind("Deployment").items():
    pod = deployment["spec"]["template"]
    labels, container = pod["metadata"]["labels"], pod["spec"]["containers"][0]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
    variables = everything["ConfigMap", container["envFrom"][0]["configMapRef"]["name"]]["data"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    given = {}
    for key, value in variables.items():
        if key.endswith("_FILE"):
            assert os.path.dirname(value) in mounts, f"{name}: nothing is mounted where {key} is"
        else:
            given[key] = value
    # Our own keys: the service says what is wrong with them.
    said = subprocess.run([f"target/debug/{container['args'][0]}", "config"], env=given, capture_output=True, text=True)
    assert said.returncode == 0, f"{name}: {said.stderr}"
    port = int(variables[next(key for key in variables if key.endswith("_HTTP__LISTEN"))].rsplit(":", 1)[1])
    assert port == container["ports"][0]["containerPort"], f"{name}: it listens elsewhere"
    if container["args"][0] == "provider":
        drain = int(json.loads(said.stdout)["drain"].removesuffix("s"))
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain + 5, f"{name}: killed in its drain"

for kind in ["Service", "PodDisruptionBudget"]:
    for name, it in of_kind(kind).items():
        selector = it["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        found = [d for d in of_kind("Deployment").values() if selector.items() <= d["spec"]["template"]["metadata"]["labels"].items()]
        assert found, f"{kind} {name} selects nothing"

scaled = of_kind("ScaledObject")
for name, it in scaled.items():
    spec = it["spec"]
    assert it["apiVersion"] == "keda.sh/v1alpha1" and set(spec) <= SPEC, f"{name}: {set(spec) - SPEC}"
    target = spec["scaleTargetRef"]["name"]
    assert "replicas" not in of_kind("Deployment")[target]["spec"], f"{target}: replicas would undo the scaling"
    assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    served = set(of_kind("ConfigMap")[target]["data"]["PROVIDER_KINDS"].split(","))
    asked = set()
    for trigger in spec["triggers"]:
        metadata = trigger["metadata"]
        assert trigger["type"] == "metrics-api" and set(metadata) == METADATA, f"{name}: {metadata}"
        assert all(isinstance(value, str) for value in metadata.values()), f"{name}: KEDA takes texts only"
        assert metadata["format"] == "prometheus" and int(metadata["targetValue"]) > 0
        assert metadata["url"] == "http://requestor.arr.svc/metrics" and "requestor" in of_kind("Service")
        asked.add(re.fullmatch(r'arr_backlog\{kind="([a-z0-9._-]+)"\}', metadata["valueLocation"])[1])
    assert asked == served, f"{name}: scaled by {asked}, serves {served}"
assert {it["spec"]["scaleTargetRef"]["name"] for it in scaled.values()} == set(of_kind("Deployment")) - {"requestor"}
print(f"{len(everything)} Kubernetes objects: as they should be")
