#!/usr/bin/env python3
"""kubernetes.py SCHEMAS CROSSPOINT: whether ../kubernetes/crosspoint.yaml is what Kubernetes takes, and its configuration what CROSSPOINT takes.

SCHEMAS: the wheel kubernetes_validate, which holds Kubernetes' own schemas, one set for each version; "-": without them.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import jsonschema
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
SETS = "kubernetes_validate/kubernetes-json-schema/"


def versions(wheel):
    """The oldest set and the newest: strict ones, in which unknown fields are mistakes."""
    with zipfile.ZipFile(wheel) as files:
        sets = {name.removeprefix(SETS).split("/")[0] for name in files.namelist() if name.startswith(SETS)}
    strict = sorted((one for one in sets if one.endswith("-strict")), key=lambda one: [int(n) for n in re.findall(r"\d+", one)])
    return [strict[0], strict[-1]]


def schema_errors(wheel, version, documents):
    with zipfile.ZipFile(wheel) as files:
        read = lambda name: json.loads(files.read(f"{SETS}{version}/{name}"))
        # The schemas refer to each other by address; the last part is the file's name.
        handlers = dict.fromkeys(("https", "file", ""), lambda address: read(address.rsplit("/", 1)[-1]))
        for document in documents:
            schema = read(f"{document['kind'].lower()}-{document['apiVersion'].replace('/', '-')}.json")
            resolver = jsonschema.RefResolver(schema.get("$id", ""), schema, handlers=handlers)
            for error in jsonschema.Draft7Validator(schema, resolver=resolver).iter_errors(document):
                yield f"{version}: {document['kind']}: {'.'.join(map(str, error.absolute_path))}: {error.message}"


def check_probe(name, probe, ports, program):
    """It asks for what the daemon has."""
    if "exec" in probe:
        path, *words = probe["exec"]["command"]
        known = subprocess.run([program, *words, "--help"], capture_output=True, check=False).returncode == 0
        if path != "/usr/bin/crosspoint" or not known:
            yield f"{name}: there is no {path} {' '.join(words)}"
    elif probe["httpGet"]["path"] not in ("/healthz", "/readyz") or probe["httpGet"]["port"] not in [port["name"] for port in ports]:
        yield f"{name}: nothing answers {probe['httpGet']}"


def check_parts(documents, program):
    """What no schema knows: the parts fit together."""
    of_kind = {document["kind"]: document for document in documents}
    config, pod = of_kind["ConfigMap"], of_kind["DaemonSet"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    if of_kind["DaemonSet"]["spec"]["selector"]["matchLabels"].items() - pod["metadata"]["labels"].items():
        yield "the selector does not find the pods"
    if pod["spec"]["volumes"][0]["configMap"]["name"] != config["metadata"]["name"]:
        yield "the volume is of another ConfigMap"
    unit = (DEPLOY / "systemd/crosspoint.service").read_text()
    wanted = re.search(r"^CapabilityBoundingSet=(.*)", unit, re.MULTILINE)[1].replace("CAP_", "").split()
    if sorted(container["securityContext"]["capabilities"]["add"]) != sorted(wanted):
        yield f"the capabilities are not those of the systemd unit: {wanted}"
    groups = pod["spec"]["securityContext"]["supplementalGroups"]
    for group in re.findall(r'^socket_group = "(.*)"', text := config["data"]["crosspoint.toml"], re.MULTILINE):
        if int(group) not in groups:
            yield f"socket_group {group} is not among the pod's supplementalGroups"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield from check_probe(name, container[name], container["ports"], program)
    if f":{container['ports'][0]['containerPort']}\"" not in text:
        yield "the metrics have another port"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        said = subprocess.run([program, "check", "--config", file.name], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        yield said.stderr


def main():
    wheel, program = sys.argv[1:3]
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/crosspoint.yaml").read_text()))
    wrong = list(check_parts(documents, program))
    tried = [] if wheel == "-" else versions(wheel)
    for version in tried:
        wrong += schema_errors(wheel, version, documents)
    if wrong:
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    print(f"{len(documents)} documents fit the schemas of: {', '.join(tried) or 'none was at hand'}; the configuration is valid")


main()
