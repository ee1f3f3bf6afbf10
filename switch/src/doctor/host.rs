//! What the kernel reports about this host.

use std::fs;
use std::path::{Path, PathBuf};

use crosspoint_netdev::{
    Channels, Ethtool, HostUse, Interface, LinkError, Links, Netdev, XdpSupport,
};
use rustix::fs::{MemfdFlags, memfd_create};

/// A host. Its files are read when a check needs them; the rest is read at the start.
pub struct Host {
    root: PathBuf,
    /// The cores that this process may use.
    pub affinity: Vec<usize>,
    /// Whether the kernel has memory files (memfd_create(2)).
    pub memfd: bool,
    /// The interfaces to examine.
    pub nics: Vec<Nic>,
}

/// A network interface, as netlink describes it.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// rtnetlink's description; `None`: there is no such interface.
    pub interface: Option<Interface>,
    /// What its driver can do; `None`: the kernel does not report it.
    pub xdp: Option<XdpSupport>,
    /// How many queues it can have; `None`: the driver does not report it.
    pub channels: Option<Channels>,
    /// The ID of the attached XDP program.
    pub program: Option<u32>,
    /// What the host itself uses it for.
    pub host_use: HostUse,
}

impl Nic {
    /// Asks the kernel, in the thread's network namespace.
    fn ask(name: &str) -> Result<Nic, LinkError> {
        let mut links = Links::open()?;
        let interface = links.find(name)?;
        let index = interface.as_ref().map(|found| found.index);
        let xdp = index.and_then(|index| Netdev::open().ok()?.xdp(index).ok());
        let channels = index.and_then(|index| Ethtool::open().ok()?.channels(index).ok());
        let program = index.and_then(|_| links.program_id(name).ok().flatten());
        let host_use = index.map(HostUse::of).transpose()?;
        Ok(Nic {
            name: name.to_owned(),
            interface,
            xdp,
            channels,
            program,
            host_use: host_use.unwrap_or_default(),
        })
    }
}

impl Host {
    /// This host. `affinity` lists the cores that the process may use.
    ///
    /// # Errors
    ///
    /// The kernel does not describe an interface of `interfaces`. An interface that does not exist is no error.
    pub fn here(affinity: &[usize], interfaces: &[String]) -> Result<Host, LinkError> {
        let nics = interfaces.iter().map(|name| Nic::ask(name));
        Ok(Host {
            memfd: memfd_create("crosspoint-doctor", MemfdFlags::CLOEXEC).is_ok(),
            nics: nics.collect::<Result<_, _>>()?,
            ..Host::at(Path::new("/"), affinity)
        })
    }

    /// A host whose files are below `root`, without interfaces.
    pub fn at(root: &Path, affinity: &[usize]) -> Host {
        Host {
            root: root.to_owned(),
            affinity: affinity.to_vec(),
            memfd: true,
            nics: Vec::new(),
        }
    }

    /// The names of all interfaces in the thread's network namespace, except the loopback.
    pub fn interfaces() -> Vec<String> {
        let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split_once(':'));
        let names = names.map(|(name, _)| name.trim().to_owned());
        names.filter(|name| name != "lo").collect()
    }

    /// The place of the absolute path `path` below the root.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, without leading and trailing white space.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file's text, as a number.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a folder, sorted; numbers by their value. Empty where there is no such folder.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        let digits = |name: &str| {
            name.trim_start_matches(|c: char| !c.is_ascii_digit())
                .parse()
        };
        names.sort_by_key(|name| (digits(name).unwrap_or(u64::MAX), name.clone()));
        names
    }

    /// The last component of a symbolic link's target.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Whether there is such a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The numbers of all processes.
    pub(super) fn processes(&self) -> Vec<String> {
        let is_number = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
        self.list("/proc").into_iter().filter(is_number).collect()
    }
}
