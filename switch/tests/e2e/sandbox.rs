//! What the daemon gives up once it has read its configuration (OPERATING.md, "Least privilege").

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Host, Lab, Switch, guest, s, wait_until, xdp};

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_BPF, as bits.
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39;
/// CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_SYS_ADMIN: of the process that enters network namespaces.
const OF_HELPER: u64 = 1 << 12 | 1 << 19 | 1 << 21;
const OFF: &str = "[sandbox]\ncapabilities = false\nseccomp = false\nlandlock = false\n";

/// The fields of a thread's status: its name and its rights.
struct Rights {
    name: String,
    text: String,
}

impl Rights {
    fn of(folder: &Path) -> Rights {
        let read = |file: &str| fs::read_to_string(folder.join(file)).expect("it runs");
        Rights {
            name: read("comm").trim().to_owned(),
            text: read("status"),
        }
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.text.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a field of the kernel").trim()
    }

    /// A set of capabilities, as bits.
    fn set(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).expect("hexadecimal")
    }

    /// Checks the five sets of capabilities, and that nothing can add to them.
    fn assert(&self, effective: u64, bounding: u64) {
        let name = &self.name;
        for (set, bits) in [
            ("CapEff", effective),
            ("CapPrm", effective),
            ("CapBnd", bounding),
            ("CapInh", 0),
            ("CapAmb", 0),
        ] {
            assert_eq!(self.set(set), bits, "{name}: {set}");
        }
        assert_eq!(self.field("NoNewPrivs"), "1", "{name}");
        assert_eq!(self.field("Seccomp"), "2", "{name}: a filter");
    }
}

fn threads(process: u32) -> Vec<Rights> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let all = tasks.map(|task| Rights::of(&task.expect("a thread").path()));
    all.collect()
}

/// The processes that this one has started.
fn children(process: u32) -> Vec<PathBuf> {
    let list = format!("/proc/{process}/task/{process}/children");
    let list = fs::read_to_string(list).expect("it runs");
    let ids = list.split_whitespace();
    ids.map(|id| Path::new("/proc").join(id)).collect()
}

#[test]
fn every_thread_has_only_what_it_needs_also_if_root_starts_it() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let ports = [xdp("a", &a), xdp("b", &b), guest(&lab, "web")];
    let switch = Switch::start(&lab, &[1], &ports);
    a.must_ping(&b);
    let threads = threads(switch.id());
    for name in [
        "worker-0",
        "uplinks",
        "port-2",
        "cp-control",
        "cp-metrics",
        "cp-log",
        "cp-watch",
    ] {
        let is_there = threads.iter().any(|thread| thread.name == name);
        assert!(is_there, "{name}");
    }
    for thread in &threads {
        let is_worker = thread.name.starts_with("worker-");
        thread.assert(if is_worker { 0 } else { NEEDED }, NEEDED);
    }
    // The one process that the daemon has started: it has turned off what `a` and `b` would leave out of frames.
    let children = children(switch.id());
    let [helper] = &*children else {
        panic!("{children:?}");
    };
    Rights::of(helper).assert(OF_HELPER, OF_HELPER);
    assert_eq!(
        fs::read_dir(helper.join("task")).expect("it runs").count(),
        1
    );
    let row = switch.show_json("switch");
    let text = row["sandbox"].as_str().expect("a text");
    assert!(
        text.starts_with("capabilities, seccomp, landlock (ABI "),
        "{text}"
    );
    let helper = helper.clone();
    drop(switch);
    // One that waits to be reaped has no command line.
    wait_until("its end", s(5), || {
        let line = fs::read_to_string(helper.join("cmdline")).unwrap_or_default();
        line.is_empty().then_some(())
    });
}

#[test]
fn the_sandbox_can_be_switched_off() {
    let lab = Lab::new(s(60));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "web"), OFF.to_owned()]);
    for thread in threads(switch.id()) {
        assert_eq!(thread.field("NoNewPrivs"), "0", "{}", thread.name);
        assert_eq!(thread.field("Seccomp"), "0", "{}", thread.name);
        assert_eq!(
            thread.set("CapEff"),
            Rights::of(Path::new("/proc/self")).set("CapEff")
        );
    }
    assert!(children(switch.id()).is_empty());
    assert_eq!(switch.show_json("switch")["sandbox"], "off");
}

#[test]
fn a_reload_may_name_new_folders_only_where_the_sandbox_allows_it() {
    let lab = Lab::new(s(60));
    let [elsewhere, allowed] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let sandbox = format!("[sandbox]\npaths = [{:?}]\n", allowed.path());
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "web"), sandbox]);
    let main = switch.config_path();
    let text = fs::read_to_string(&main).expect("the file");
    let reload_with = |more: &str| {
        fs::write(&main, format!("{text}{more}")).expect("the file");
        switch.ask(&["reload"])
    };
    let port = |folder: &Path| {
        let socket = folder.join("db.sock");
        format!("[[port]]\nname = \"db\"\ntype = \"vhost\"\nsocket = {socket:?}\n")
    };
    // A socket.
    let (status, said) = reload_with(&port(elsewhere.path()));
    assert!(!status.success(), "{said}");
    let hint = "restart the daemon, or first add the folder to `[sandbox] paths`";
    assert!(
        said.contains("Permission denied") && said.contains(hint),
        "{said}"
    );
    assert!(!elsewhere.path().join("db.sock").exists());
    let (status, said) = reload_with(&port(allowed.path()));
    assert!(status.success(), "{said}");
    assert!(allowed.path().join("db.sock").exists());
    // A set's file.
    let set = |folder: &Path| {
        let file = folder.join("admins.txt");
        fs::write(&file, "192.0.2.1\n").expect("the file");
        format!("[[set]]\nname = \"admins\"\nfile = {file:?}\n")
    };
    let (status, said) = reload_with(&set(elsewhere.path()));
    assert!(
        !status.success() && said.contains("(`[sandbox]`)"),
        "{said}"
    );
    let (status, said) = reload_with(&set(allowed.path()));
    assert!(status.success(), "{said}");
    // The folder of the configuration is there from the start, and can be written.
    let (status, said) = switch.ask(&["set", "add", "admins", "192.0.2.2"]);
    assert!(status.success(), "{said}");
    fs::write(&main, &text).expect("the file");
    let (status, said) = switch.ask(&["reload"]);
    assert!(status.success(), "{said}");
}
