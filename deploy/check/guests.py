#!/usr/bin/env python3
"""guests.py [WORDS]: whether the examples for QEMU, libvirt and Cloud Hypervisor say what the tests' QEMU is told (guest/qemu.sh, which the tests call).

WORDS is the command line of the QEMU that libvirt made of its example, a word a line (libvirt.sh): it says the same.

What is compared: the memory, the socket, the network back end and the card. What the tests' card says besides is QEMU's default.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
SOCKET, MAC, PAIRS = "/run/crosspoint/guests/web-1.sock", "52:54:00:00:01:01", 4
# Options that the tests' command line contains and the example leaves to QEMU's defaults.
DEFAULTS = {"mrg_rxbuf": "on", "packed": "off"}


def options(words):
    """-name -> its value, split at commas: the first word, and the properties."""
    found = {}
    for name, value in zip(words, words[1:], strict=False):
        if name.startswith("-") and not value.startswith("-"):
            first, *rest = value.split(",")
            found[name.lstrip("-")] = {"": first} | dict(word.split("=", 1) for word in rest if "=" in word)
    return found


def of_tests():
    """What the tests run, for a guest like the example's."""
    with tempfile.TemporaryDirectory() as image:
        for name in ("vmlinuz", "initrd.gz"):
            (pathlib.Path(image) / name).touch()
        line = [DEPLOY / "guest/qemu.sh", "--socket", SOCKET, "--queues", str(PAIRS), "--mac", MAC, "--mem", "4096", "--reconnect", "1",
                "--accel", "kvm", "--image", image, "--dry-run"]
        words = shlex.split(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    tests = options(words)
    # QEMU before 9.2.
    if "reconnect" in tests["chardev"]:
        tests["chardev"]["reconnect-ms"] = str(int(tests["chardev"].pop("reconnect")) * 1000)
    for name, value in DEFAULTS.items():
        if tests["device"].get(name) == value:
            del tests["device"][name]
    return tests


def example(path):
    """Options of an example: lines without the comments."""
    return options(shlex.split("\n".join(line for line in (DEPLOY / path).read_text().splitlines() if not line.startswith("#"))))


def check_qemu(tests):
    ours = example("qemu/web-1.args")
    for name in ("m", "object", "machine", "chardev", "netdev", "device"):
        if ours.get(name) != tests[name]:
            yield f"qemu/web-1.args: -{name} is {ours.get(name)}, and the tests' is {tests[name]}"


def check_libvirt(tests):
    root = ET.parse(DEPLOY / "libvirt/web-1.xml").getroot()
    at = lambda path, key: (lambda found: None if found is None else found.get(key) if key else found.text)(root.find(path))
    card = "devices/interface[@type='vhostuser']/"
    says = {
        "object": (f"memory-backend-{at('memoryBacking/source', 'type')}", tests["object"][""]),
        "share": ("on" if at("memoryBacking/access", "mode") == "shared" else "off", tests["object"]["share"]),
        "memory": (at("memory", ""), tests["m"][""]),
        "machine": (at("os/type", "machine"), tests["machine"][""]),
        "socket": (at(card + "source", "path"), tests["chardev"]["path"]),
        "which side listens": (at(card + "source", "mode"), "server" if "server" in tests["chardev"] else "client"),
        "reconnect": (f"{at(card + 'source/reconnect', 'timeout')}000", tests["chardev"]["reconnect-ms"]),
        "queue pairs": (at(card + "driver", "queues"), tests["netdev"]["queues"]),
        "mac": (at(card + "mac", "address"), tests["device"]["mac"]),
        "card": (f"{at(card + 'model', 'type')}-net-pci", tests["device"][""]),
    }
    for what, (ours, theirs) in says.items():
        if ours != theirs:
            yield f"libvirt/web-1.xml: {what} is {ours}, and the tests' is {theirs}"


def check_made_by_libvirt(words, tests):
    """What libvirt tells QEMU, which is JSON in part."""
    def of(name, start):
        values = [value for option, value in zip(words, words[1:], strict=False) if option == name and start in value]
        return json.loads(values[0]) if values and values[0].startswith("{") else values[0] if values else ""

    memory, chardev, netdev, device = of("-object", "memory-backend"), of("-chardev", SOCKET), of("-netdev", "vhost-user"), of("-device", "virtio-net-pci")
    if not all((memory, chardev, netdev, device)):
        yield f"libvirt's QEMU has no such memory, socket or card: {' '.join(words)}"
        return
    chardev = dict(word.split("=", 1) for word in chardev.split(",") if "=" in word)
    seconds = int(tests["chardev"]["reconnect-ms"]) // 1000
    says = {
        "memory": ((memory["qom-type"], memory["share"], memory["size"]), ("memory-backend-memfd", True, int(tests["m"][""]) << 20)),
        "socket": ((chardev["path"], chardev.get("server")), (SOCKET, None)),
        "reconnect": (int(chardev.get("reconnect", 0)) or int(chardev.get("reconnect-ms", 0)) // 1000, seconds),
        "queue pairs": (netdev["queues"], PAIRS),
        "card": ((device["mq"], str(device["vectors"]), device["mac"]), (True, tests["device"]["vectors"], tests["device"]["mac"])),
    }
    for what, (ours, theirs) in says.items():
        if ours != theirs:
            yield f"QEMU by libvirt: {what} is {ours}, and the tests' is {theirs}"


def check_cloud_hypervisor(tests):
    text = (DEPLOY / "cloud-hypervisor/web-1.args").read_text()
    for part in (f"socket={tests['chardev']['path']}", f"mac={tests['device']['mac']}", "shared=on", "vhost_user=true", "num_queues=2"):
        if not re.search(rf"[ ,]{re.escape(part)}(,|$)", text, re.MULTILINE):
            yield f"cloud-hypervisor/web-1.args: there is no {part}"


def main():
    tests = of_tests()
    wrong = [*check_qemu(tests), *check_libvirt(tests), *check_cloud_hypervisor(tests)]
    if len(sys.argv) > 1:
        wrong += check_made_by_libvirt(pathlib.Path(sys.argv[1]).read_text().splitlines(), tests)
    if wrong:
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    print("the examples for QEMU, libvirt and Cloud Hypervisor match the options of the tests' QEMU")


main()
