//! A simulated host: files in a folder, and an interface.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crosspoint::doctor::{Host, Nic, Report, Severity};
use crosspoint_config::Config;
use crosspoint_netdev::{Channels, HostUse, Interface, Reach, XdpSupport};
use tempfile::TempDir;

const CONFIG: &str = r#"
version = 1
[workers]
cores = [2, 3]
[[port]]
name = "up0"
type = "xdp"
interface = "up0"
busy_poll = true
huge_pages = "reserved"
[[port]]
name = "web-1"
type = "vhost"
socket = "/run/crosspoint/guests/web-1.sock"
[[port]]
name = "db-1"
type = "vhost"
role = "client"
socket = "/run/vm/db-1.sock"
"#;

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";
const POOL: &str = "hugepages/hugepages-2048kB";

const STATUS: &str = "Name:\tcrosspoint\nUmask:\t0027\nCapEff:\t000001ffffffffff";
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
    Max open files            1024                 524288               files\n\
    Max locked memory         8388608              8388608              bytes";
const INTERRUPTS: &str = "           CPU0  CPU1  CPU2  CPU3  CPU4  CPU5\n\
    24:   10    0    7    0    0    0  IO-APIC 5-edge  ACPI:Ged\n\
    25:    0    9    0    0    0    0  PCI-MSIX-0000:00:01.0 1-edge  nvme0q1\n\
    LOC:  1    2    3    4    5    6  Local timer interrupts";

/// Files of a host with six cores: two on memory node 0, four on node 1. Two of the latter belong to workers.
pub const FILES: &[(&str, &str)] = &[
    ("/proc/sys/kernel/osrelease", "6.12.9-generic"),
    (
        "/proc/net/protocols",
        "protocol size\nXDP 1088 0\nUDP 1024 0",
    ),
    ("/proc/sys/kernel/unprivileged_bpf_disabled", "2"),
    ("/proc/sys/net/core/bpf_jit_enable", "1"),
    ("/proc/sys/net/core/bpf_jit_harden", "0"),
    (
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc",
    ),
    (
        "/sys/devices/system/clocksource/clocksource0/available_clocksource",
        "tsc hpet",
    ),
    ("/proc/self/status", STATUS),
    ("/proc/self/limits", LIMITS),
    ("/proc/sys/vm/max_map_count", "65530"),
    (
        "/proc/sys/kernel/seccomp/actions_avail",
        "kill_process kill_thread trap errno user_notif trace log allow",
    ),
    (
        "/sys/kernel/security/lsm",
        "lockdown,capability,landlock,bpf",
    ),
    (
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "512",
    ),
    (
        "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
        "500",
    ),
    (
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        "0",
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "always [madvise] never",
    ),
    ("/proc/sys/kernel/numa_balancing", "0"),
    ("/proc/swaps", "Filename Type Size Used Priority"),
    ("/sys/devices/system/cpu/online", "0-5"),
    ("/sys/devices/system/cpu/isolated", "2-3"),
    ("/sys/devices/system/cpu/nohz_full", "(null)"),
    (
        "/proc/cmdline",
        "quiet isolcpus=2-3 nohz_full=2-3 rcu_nocbs=2-3",
    ),
    ("/proc/interrupts", INTERRUPTS),
    ("/proc/irq/24/effective_affinity_list", "0"),
    ("/proc/irq/25/smp_affinity_list", "0-1"),
    ("/proc/71/comm", "irqbalance"),
    (
        "/proc/71/environ",
        "A=1\0IRQBALANCE_BANNED_CPULIST=2,3\0B=2",
    ),
    ("/sys/class/net/up0/queues/rx-0/rps_cpus", "00"),
    ("/sys/class/net/up0/device/numa_node", "1"),
    ("/sys/class/net/up0/napi_defer_hard_irqs", "2"),
    ("/sys/class/net/up0/gro_flush_timeout", "200000"),
    ("/sys/devices/virtual/workqueue/cpumask", "33"),
];

/// A listener's line in `/proc/net/unix`.
fn unix_listener(path: &str) -> String {
    format!(
        "Num       RefCount Protocol Flags    Type St Inode Path\n\
        0000000000000000: 00000002 00000000 00010000 0001 01 17 {path}\n"
    )
}

/// A simulated host, and the configuration to run on it.
pub struct Patient {
    root: TempDir,
    pub config: String,
    pub affinity: Vec<usize>,
    pub memfd: bool,
    pub nics: Vec<Nic>,
}

impl Patient {
    /// A host without faults.
    pub fn fit() -> Patient {
        let patient = Patient {
            root: folder(),
            config: CONFIG.to_owned(),
            affinity: (0..6).collect(),
            memfd: true,
            nics: vec![nic()],
        };
        for (path, text) in FILES {
            patient.write(path, text);
        }
        for core in 0..6 {
            let folder = format!("{CPU}/cpu{core}");
            patient.write(
                &format!("{folder}/topology/thread_siblings_list"),
                &core.to_string(),
            );
            patient.write(&format!("{folder}/cpufreq/scaling_governor"), "performance");
            patient.write(&format!("{folder}/cpuidle/state1/name"), "C1");
            patient.write(&format!("{folder}/cpuidle/state1/latency"), "2");
            patient.write(&format!("{folder}/cpuidle/state1/disable"), "0");
            patient.write(&format!("{folder}/cpuidle/state2/name"), "C6");
            patient.write(&format!("{folder}/cpuidle/state2/latency"), "130");
            patient.write(&format!("{folder}/cpuidle/state2/disable"), "1");
        }
        for (node, cores) in ["0-1", "2-5"].iter().enumerate() {
            patient.write(&format!("{NODE}/node{node}/cpulist"), cores);
            patient.write(&format!("{NODE}/node{node}/{POOL}/nr_hugepages"), "256");
            patient.write(&format!("{NODE}/node{node}/{POOL}/free_hugepages"), "250");
        }
        let driver = patient.path("/sys/class/net/up0/device/driver");
        symlink("../../../bus/pci/drivers/ice", driver).expect("a link");
        patient.make_sockets();
        patient
    }

    fn make_sockets(&self) {
        let folder = self.path("/run/crosspoint/guests");
        fs::create_dir_all(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).expect("a mode");
        let found = fs::metadata(&folder).expect("it is there");
        self.write(
            "/etc/passwd",
            &format!("switch:x:{}:4242::/:/bin/false", found.uid()),
        );
        self.write("/etc/group", &format!("kvm:x:{}:", found.gid()));
        fs::create_dir_all(self.path("/run/vm")).expect("a folder");
        UnixListener::bind(self.path("/run/vm/db-1.sock")).expect("a socket");
    }

    /// As with the package: a unit that runs the daemon as user `crosspoint`, and a folder of sockets with a group of its own.
    fn install(&self, umask: &str) {
        let unit = format!(
            "[Service]\nUser=crosspoint\nGroup=crosspoint\nUMask={umask}\n#SupplementaryGroups=libvirt-qemu"
        );
        self.write("/usr/lib/systemd/system/crosspoint.service", &unit);
        self.mode("/run/crosspoint/guests", 0o2770);
        self.group("kvm", "libvirt-qemu");
    }

    fn mode(&self, path: &str, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(self.path(path), mode).expect("a mode");
    }

    /// Gives the group of the sockets' folder this name and these members.
    fn group(&self, name: &str, members: &str) {
        let folder = self.path("/run/crosspoint/guests");
        let id = fs::metadata(folder).expect("it is there").gid();
        self.write("/etc/group", &format!("{name}:x:{id}:{members}"));
    }

    /// Adds a key to the port `web-1`.
    fn guest_key(&mut self, key: &str) {
        let name = "name = \"web-1\"";
        self.config = self.config.replace(name, &format!("{name}\n{key}"));
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("written");
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).expect("it is there");
    }

    pub fn nic(&mut self) -> &mut Nic {
        self.nics.first_mut().expect("it has one")
    }

    fn interface(&mut self) -> &mut Interface {
        self.nic().interface.as_mut().expect("it is there")
    }

    fn xdp(&mut self) -> &mut XdpSupport {
        self.nic().xdp.as_mut().expect("the kernel tells")
    }

    /// Makes a process of this name hold an XDP program on the interface.
    pub fn attach_program(&mut self, process: &str) {
        self.nic().program = Some(77);
        self.write("/proc/88/comm", process);
        self.write(
            "/proc/88/fdinfo/4",
            "pos:\t0\nlink_type:\tcgroup\nprog_id:\t77",
        );
        self.write(
            "/proc/88/fdinfo/5",
            "pos:\t0\nlink_type:\txdp\nlink_id:\t3\nprog_id:\t77\nifindex:\t7",
        );
    }

    pub fn examine(&self) -> Report {
        let mut host = Host::at(self.root.path(), &self.affinity);
        host.memfd = self.memfd;
        host.nics = self.nics.clone();
        let config = Config::parse("test", &self.config);
        let config = config.unwrap_or_else(|error| panic!("{}", error.render()));
        crosspoint::doctor::examine(&host, Some(&config))
    }
}

/// In memory if possible: each host has a hundred files, and there are many hosts.
fn folder() -> TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory
        .or_else(|_| tempfile::tempdir())
        .expect("a folder")
}

/// An interface with all capabilities.
fn nic() -> Nic {
    Nic {
        name: "up0".to_owned(),
        interface: Some(Interface {
            name: "up0".to_owned(),
            index: 7,
            up: true,
            carrier: true,
            mtu: 1500,
            rx_queues: 2,
            tx_queues: 2,
            peer: None,
            software: false,
            has_program: false,
            reach: Reach::All,
            takes_tags: None,
            peers_below: Vec::new(),
        }),
        xdp: Some(XdpSupport {
            native: true,
            zero_copy: true,
            several_buffers: true,
            zero_copy_buffers_max: 8,
            tx_checksum: true,
        }),
        channels: Some(Channels {
            combined: 2,
            combined_max: 8,
            ..Channels::default()
        }),
        program: None,
        host_use: HostUse::default(),
    }
}

/// A fault of a host.
pub struct Wound {
    /// The checks that find it, in order.
    pub ids: &'static [&'static str],
    pub worst: Severity,
    pub inflict: fn(&mut Patient),
}

const fn wound(ids: &'static [&'static str], worst: Severity, inflict: fn(&mut Patient)) -> Wound {
    Wound {
        ids,
        worst,
        inflict,
    }
}

/// At least one fault per check.
pub fn wounds() -> Vec<Wound> {
    use Severity::{Error, Note, Warning};
    vec![
        wound(&["kernel"], Note, |p| {
            p.write("/proc/sys/kernel/osrelease", "6.6.30")
        }),
        wound(&["af-xdp"], Error, |p| {
            p.write("/proc/net/protocols", "UDP 1")
        }),
        wound(&["bpf"], Error, |p| {
            p.remove("/proc/sys/kernel/unprivileged_bpf_disabled")
        }),
        wound(&["bpf-jit"], Warning, |p| {
            p.write("/proc/sys/net/core/bpf_jit_enable", "0")
        }),
        wound(&["bpf-jit"], Note, |p| {
            p.write("/proc/sys/net/core/bpf_jit_harden", "2")
        }),
        wound(&["memfd"], Error, |p| p.memfd = false),
        wound(&["clock"], Warning, |p| {
            p.write(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                "hpet",
            );
        }),
        wound(&["sandbox"], Warning, |p| {
            p.remove("/proc/sys/kernel/seccomp/actions_avail")
        }),
        wound(&["sandbox"], Note, |p| {
            p.write("/sys/kernel/security/lsm", "lockdown,capability,bpf")
        }),
        wound(&["capabilities"], Warning, |p| {
            p.write(
                "/proc/self/status",
                &STATUS.replace("000001ffffffffff", "0000008000005000"),
            );
        }),
        wound(&["capabilities", "locked-memory"], Warning, |p| {
            p.write("/proc/self/status", "CapEff:\t0");
        }),
        wound(&["open-files"], Error, |p| {
            p.write("/proc/self/limits", &LIMITS.replace("524288", "256"));
        }),
        wound(&["mappings"], Warning, |p| {
            p.write("/proc/sys/vm/max_map_count", "30000")
        }),
        wound(&["huge-pages"], Error, |p| {
            p.write(
                "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "3",
            );
        }),
        wound(&["transparent-huge-pages"], Note, |p| {
            p.config = p.config.replace("reserved", "transparent");
            p.write(
                "/sys/kernel/mm/transparent_hugepage/enabled",
                "always madvise [never]",
            );
        }),
        wound(&["numa-balancing"], Note, |p| {
            p.write("/proc/sys/kernel/numa_balancing", "1")
        }),
        wound(&["swap"], Note, |p| {
            p.write("/proc/swaps", "Filename\n/dev/sda2 partition")
        }),
        wound(&["worker-cores"], Error, |p| p.affinity = vec![0, 1, 2]),
        wound(&["worker-cores"], Error, |p| {
            p.config = p.config.replace("[2, 3]", "[2, 9]");
        }),
        wound(&["isolation"], Warning, |p| {
            p.write("/sys/devices/system/cpu/isolated", "3")
        }),
        wound(&["tickless"], Note, |p| {
            p.write("/proc/cmdline", "quiet isolcpus=2-3")
        }),
        wound(&["siblings"], Warning, |p| {
            p.write(&format!("{CPU}/cpu2/topology/thread_siblings_list"), "2,4");
        }),
        wound(&["siblings"], Note, |p| {
            p.write(&format!("{CPU}/cpu2/topology/thread_siblings_list"), "2-3");
            p.write(&format!("{CPU}/cpu3/topology/thread_siblings_list"), "2-3");
        }),
        wound(&["numa"], Warning, |p| {
            p.write("/sys/class/net/up0/device/numa_node", "0")
        }),
        wound(&["governor"], Warning, |p| {
            p.write(&format!("{CPU}/cpu3/cpufreq/scaling_governor"), "powersave");
        }),
        wound(&["idle-states"], Note, |p| {
            p.write(&format!("{CPU}/cpu3/cpuidle/state2/disable"), "0");
        }),
        wound(&["interrupts"], Warning, |p| {
            p.write("/proc/irq/24/effective_affinity_list", "2")
        }),
        // irqbalance leaves isolated cores alone by default.
        wound(&["isolation", "irqbalance"], Warning, |p| {
            p.write("/sys/devices/system/cpu/isolated", "");
            p.write("/proc/71/environ", "IRQBALANCE_BANNED_CPUS=4\0");
        }),
        wound(&["rps"], Warning, |p| {
            p.write("/sys/class/net/up0/queues/rx-0/rps_cpus", "0c")
        }),
        wound(&["workqueues"], Note, |p| {
            p.write("/sys/devices/virtual/workqueue/cpumask", "ff");
        }),
        wound(&["interface"], Warning, |p| p.nic().interface = None),
        wound(&["interface"], Warning, |p| p.interface().up = false),
        wound(&["host-interface"], Error, |p| {
            p.nic().host_use.addresses = vec!["192.0.2.5/24".to_owned()];
        }),
        wound(&["host-interface"], Error, |p| {
            p.nic().host_use.default_route = Some("br0".to_owned());
            p.nic().host_use.controller = Some("bridge `br0`".to_owned());
        }),
        wound(&["native-xdp"], Note, |p| p.nic().xdp = None),
        wound(&["native-xdp", "zero-copy"], Warning, |p| {
            *p.xdp() = XdpSupport::default()
        }),
        wound(&["reach"], Warning, |p| {
            p.interface().reach = Reach::OwnAddress("a macvlan in mode private");
        }),
        wound(&["reach"], Warning, |p| {
            p.interface().takes_tags = Some("a bridge");
        }),
        wound(&["reach"], Error, |p| {
            p.interface().reach = Reach::None("an ipvlan");
        }),
        wound(&["native-xdp", "zero-copy"], Error, |p| {
            *p.xdp() = XdpSupport::default();
            p.config = p
                .config
                .replace("busy_poll", "mode = \"zero-copy\"\nbusy_poll");
        }),
        wound(&["zero-copy"], Note, |p| p.xdp().zero_copy = false),
        wound(&["direct"], Warning, |p| {
            let (port, direct) = (
                "name = \"web-1\"",
                "direct = { uplink = \"up0\", queue = 2 }",
            );
            p.config = p.config.replace(port, &format!("{port}\n{direct}"));
            p.config = p.config.replace("busy_poll", "queues = [0, 1]\nbusy_poll");
            p.xdp().zero_copy_buffers_max = 1;
        }),
        wound(&["xdp-program"], Error, |p| p.attach_program("xdp-filter")),
        wound(&["mtu"], Error, |p| {
            p.interface().mtu = 9000;
            p.xdp().several_buffers = false;
        }),
        wound(&["mtu"], Warning, |p| {
            p.interface().mtu = 9000;
            p.xdp().zero_copy_buffers_max = 1;
        }),
        wound(&["queues"], Note, |p| p.interface().rx_queues = 1),
        wound(&["queues"], Error, |p| {
            p.config = p.config.replace("busy_poll", "channels = 9\nbusy_poll");
        }),
        wound(&["busy-poll"], Warning, |p| {
            p.write("/sys/class/net/up0/napi_defer_hard_irqs", "0")
        }),
        wound(&["socket-folder"], Warning, |p| {
            let open = fs::Permissions::from_mode(0o777);
            fs::set_permissions(p.path("/run/crosspoint/guests"), open).expect("a mode");
        }),
        wound(&["socket-folder"], Warning, |p| p.install("0022")),
        wound(&["socket-folder"], Warning, |p| {
            p.install("0007");
            // A drop-in takes precedence over the unit.
            p.write(
                "/etc/systemd/system/crosspoint.service.d/x.conf",
                "[Service]\nUMask=0000",
            );
        }),
        wound(&["socket-folder"], Warning, |p| {
            p.install("0007");
            // A running daemon has the umask with which it was started.
            p.write("/proc/90/comm", "crosspoint");
            p.write("/proc/90/task/91/comm", "worker-0");
            p.write(
                "/proc/90/status",
                "Umask:\t0077\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t",
            );
        }),
        wound(&["guest-group"], Note, |p| {
            p.install("0007");
            p.group("kvm", "");
        }),
        wound(&["guest-group"], Warning, |p| {
            p.install("0007");
            p.mode("/run/crosspoint/guests", 0o750);
        }),
        wound(&["guest-group"], Warning, |p| {
            p.install("0007");
            p.guest_key("socket_group = \"kvm\"");
        }),
        wound(&["socket-folder"], Error, |p| {
            p.config = p
                .config
                .replace("/run/crosspoint/guests", "/run/crosspiont/guests");
        }),
        wound(&["socket-group"], Error, |p| {
            let socket = "socket = \"/run/crosspoint/guests/web-1.sock\"";
            let group = format!("{socket}\nsocket_group = \"libvirt-qemo\"");
            p.config = p.config.replace(socket, &group);
        }),
        wound(&["front-end-socket"], Note, |p| {
            p.remove("/run/vm/db-1.sock")
        }),
        wound(&["own-sockets"], Error, |p| {
            p.write("/run/crosspoint/guests/web-1.sock", "")
        }),
        wound(&["own-sockets"], Warning, |p| {
            p.write(
                "/proc/net/unix",
                &unix_listener("/run/crosspoint/guests/web-1.sock"),
            );
        }),
        wound(&["own-sockets"], Note, |p| {
            p.write("/proc/net/unix", "Num RefCount ...");
            UnixListener::bind(p.path("/run/crosspoint/guests/web-1.sock")).expect("a socket");
        }),
        wound(&["own-sockets"], Warning, |p| {
            let line = unix_listener("/run/crosspoint/guests/web-1.sock");
            p.write("/proc/net/unix", &format!("{line}{line}"));
            UnixListener::bind(p.path("/run/crosspoint/guests/web-1.sock")).expect("a socket");
        }),
        wound(&["worker-threads"], Warning, |p| {
            p.write("/proc/80/comm", "crosspoint");
            p.write("/proc/80/task/81/comm", "worker-0");
            p.write("/proc/80/task/81/status", "Cpus_allowed_list:\t0-3");
            p.write("/proc/80/task/82/comm", "worker-1");
            p.write("/proc/80/task/82/status", "Cpus_allowed_list:\t3");
        }),
        // A documentation address, which no host has (RFC 5737).
        wound(&["metrics-address"], Warning, |p| {
            p.config
                .push_str("[metrics]\nlisten = \"192.0.2.1:9477\"\n");
        }),
    ]
}
