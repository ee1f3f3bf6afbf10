#!/usr/bin/env python3
"""hooks.py CROSSPOINT [XML...]: runs libvirt's hook (../libvirt/hooks/qemu) as libvirt does, with domains of several shapes, against a running daemon.

With a second argument it only writes the domains there, for libvirt's schema.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HOOK = pathlib.Path(__file__).resolve().parent.parent / "libvirt/hooks/qemu"
EXAMPLE = HOOK.parent.parent / "web-1.xml"
GUESTS = "/run/crosspoint/guests"
UUIDS = [f"4dea22b3-1d52-d8f3-2516-782e98ab3fa{n}" for n in range(10)]


def interface(socket, mode="client", inside="", mac="52:54:00:00:02:01"):
    return f"""
    <interface type='vhostuser'>
      <mac address='{mac}'/>
      <source type='unix' path='{socket}' mode='{mode}'/>
      <model type='virtio'/>
      {inside}
      <alias name='net0'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>"""


def domain(name, uuid, devices, metadata=""):
    """As libvirt prints a running domain."""
    return f"""<domain type='kvm' id='3'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>{metadata}
  </metadata>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <memoryBacking>
    <hugepages>
      <page size='2048' unit='KiB'/>
    </hugepages>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
  </devices>
</domain>
"""


BRIDGE = "<interface type='bridge'><source bridge='virbr0'/><model type='virtio'/></interface>"
METADATA = """
    <cp:ports xmlns:cp='urn:crosspoint:ports'>
      <cp:port name='{name}'>
        {text}
      </cp:port>
    </cp:ports>"""
SHAPES = {
    "none": domain("none", UUIDS[0], BRIDGE),
    "elsewhere": domain("elsewhere", UUIDS[1], interface("/var/run/openvswitch/vhu1")),
    "two": domain(
        "two",
        UUIDS[2],
        interface(f"{GUESTS}/two-a.sock", inside="<driver queues='2' rx_queue_size='1024'/><mtu size='9000'/>")
        + BRIDGE
        + interface(f"{GUESTS}/two-b.sock", mac="52:54:00:00:02:02")
        + interface("/var/run/openvswitch/vhu2", mac="52:54:00:00:02:03"),
    ),
    "listens": domain("listens", UUIDS[3], interface(f"{GUESTS}/listens.sock", mode="server")),
    "tenant": domain(
        "tenant &amp; sons",
        UUIDS[4],
        interface(f"{GUESTS}/tenant.sock"),
        METADATA.format(name="tenant", text='vlan = { access = 100 }\n        addresses = { mac = ["52:54:00:00:02:01"] }   # its own &amp; no other'),
    ),
    "thief": domain("thief", UUIDS[5], interface(f"{GUESTS}/two-a.sock")),
    "broken": domain("broken", UUIDS[6], interface(f"{GUESTS}/broken.sock"), METADATA.format(name="broken", text="vlan = { access = 5000 }")),
    "unused": domain("unused", UUIDS[7], interface(f"{GUESTS}/unused.sock"), METADATA.format(name="other", text="mac_limit = 1")),
    "tables": domain("tables", UUIDS[8], interface(f"{GUESTS}/tables.sock"), METADATA.format(name="tables", text="[[port]]")),
    "named": domain("named", UUIDS[9], interface(f"{GUESTS}/a b.sock")),
}


class Switch:
    """A daemon, and the hook with its folders."""

    def __init__(self, program, work, watch):
        self.program, self.work = program, work
        self.ports, self.guests, self.socket = work / "ports.d", work / "guests", work / "control.sock"
        self.ports.mkdir()
        self.guests.mkdir()
        config = work / "crosspoint.toml"
        config.write_text(f'version = 1\nports_dir = "{self.ports}"\nwatch_ports = {watch}\n[metrics]\nlisten = "off"\n[control]\nsocket = "{self.socket}"\n')
        self.log = (work / "log").open("w")
        self.daemon = subprocess.Popen([program, "run", "--config", config], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 20
        while self.show("switch").returncode != 0:
            assert time.monotonic() < end and self.daemon.poll() is None, (work / "log").read_text()
            time.sleep(0.1)

    def show(self, *words):
        return subprocess.run([self.program, "show", *words, "--socket", self.socket], capture_output=True, text=True, check=False)

    def running(self):
        return {port["name"]: port for port in json.loads(self.show("--json", "ports").stdout)}

    def files(self):
        return sorted(path.name for path in self.ports.iterdir())

    def hook(self, shape, operation, sub="begin", text=None):
        xml = (SHAPES[shape] if text is None else text).replace(GUESTS, str(self.guests))
        env = {"CROSSPOINT": self.program, "CROSSPOINT_GUESTS": self.guests, "CROSSPOINT_PORTS_DIR": self.ports, "CROSSPOINT_SOCKET": self.socket}
        line = [HOOK, shape, operation, sub, "-"]
        said = subprocess.run(line, input=xml, capture_output=True, text=True, env=env, check=False, timeout=60)
        # libvirt takes output as another XML in some operations.
        assert said.stdout == "", said.stdout
        return said

    def starts(self, shape, names, text=None):
        said = self.hook(shape, "prepare", text=text)
        assert said.returncode == 0, f"{shape}: {said.stderr}"
        assert set(names) <= self.running().keys(), f"{shape}: {self.running().keys()}"

    def refuses(self, shape, why):
        before = self.files(), self.running().keys()
        said = self.hook(shape, "prepare")
        assert said.returncode == 1 and why in said.stderr, f"{shape}: {said.returncode} {said.stderr}"
        assert (self.files(), self.running().keys()) == before, f"{shape} leaves {self.files()}"

    def ends(self, shape, names):
        assert self.hook(shape, "release", "end").returncode == 0
        assert not set(names) & self.running().keys(), f"{shape}: {self.running().keys()}"

    def close(self):
        self.daemon.send_signal(signal.SIGTERM)
        assert self.daemon.wait(10) == 0


def check_life(switch):
    switch.starts("none", [])
    switch.starts("elsewhere", [])
    assert switch.files() == [], switch.files()
    switch.starts("two", ["two-a", "two-b"])
    text = (switch.ports / "two-a.toml").read_text()
    for line in ('role = "server"', "queue_pairs = 2", "mtu = 9000", f'socket = "{switch.guests}/two-a.sock"'):
        assert line in text.splitlines(), text
    assert (switch.guests / "two-a.sock").is_socket(), "QEMU could not connect yet"
    assert "queue_pairs" not in (switch.ports / "two-b.toml").read_text()
    # libvirt was restarted, and a file is gone meanwhile.
    (switch.ports / "two-b.toml").unlink()
    assert switch.hook("two", "reconnect").returncode == 0
    assert switch.files() == ["two-a.toml", "two-b.toml"]
    # Operations between, and their output.
    for operation, sub in (("start", "begin"), ("started", "begin"), ("stopped", "end"), ("migrate", "begin"), ("restore", "begin")):
        assert switch.hook("two", operation, sub).returncode == 0
    assert switch.files() == ["two-a.toml", "two-b.toml"]


def check_refusals(switch):
    switch.refuses("thief", "belongs to another domain")
    switch.refuses("broken", "vlan")
    switch.refuses("unused", "ports that no interface has: other")
    switch.refuses("tables", "table header")
    switch.refuses("named", "'a b'")
    by_hand = switch.ports / "listens.toml"
    by_hand.write_text("# by hand\n")
    switch.refuses("listens", "written by hand")
    switch.ends("listens", [])
    assert by_hand.exists(), "a file that the hook has not made is gone"
    by_hand.unlink()
    said = switch.hook("two", "prepare", text="<domain>")
    assert said.returncode == 1 and "crosspoint: " in said.stderr, said.stderr


def check_settings(switch):
    switch.starts("listens", ["listens"])
    assert 'role = "client"' in (switch.ports / "listens.toml").read_text()
    switch.starts("tenant", ["tenant"])
    shown = switch.show("port", "tenant").stdout
    assert "100" in shown and "52:54:00:00:02:01" in shown, shown
    example = EXAMPLE.read_text()
    switch.starts("none", ["web-1"], text=example)
    assert "queue_pairs = 4" in (switch.ports / "web-1.toml").read_text()


def check(program, watch):
    with tempfile.TemporaryDirectory() as folder:
        switch = Switch(program, pathlib.Path(folder), watch)
        try:
            check_life(switch)
            check_refusals(switch)
            check_settings(switch)
            switch.ends("thief", [])
            switch.ends("two", ["two-a", "two-b"])
            switch.ends("tenant", ["tenant"])
            assert switch.files() == ["listens.toml", "web-1.toml"], switch.files()
        finally:
            switch.close()
        # Without a daemon the domain may start, and the daemon finds the files.
        said = switch.hook("two", "prepare")
        assert said.returncode == 0 and "does not answer" in said.stderr, said.stderr
        assert switch.hook("two", "release", "end").returncode == 0
        assert switch.files() == ["listens.toml", "web-1.toml"], switch.files()


def main():
    program = os.path.realpath(sys.argv[1])
    if len(sys.argv) > 2:
        for name, text in SHAPES.items():
            (pathlib.Path(sys.argv[2]) / f"{name}.xml").write_text(text)
        return
    for watch in ("true", "false"):
        check(program, watch)
    print(f"{len(SHAPES) + 1} domains, with and without watch_ports")


main()
