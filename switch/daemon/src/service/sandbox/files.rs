//! Landlock: the files that the daemon may open. A list that is in force can only become shorter, so it has the folders that
//! the configuration names at the start, and some that are always on it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crosspoint_config::{Config, PortKind};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, path_beneath_rules,
};

/// Folders that are always read: the groups of sockets (/etc/group, which is replaced when it changes), threads, memory and
/// interfaces.
const READ: [&str; 3] = ["/etc", "/proc", "/sys"];
/// Folders whose files are always read and written.
const KEPT: [&str; 1] = ["/etc/crosspoint"];
/// Folders in which sockets may always be made.
const SOCKETS: [&str; 2] = ["/run", "/var/run"];

/// The version whose rights are restricted, as far as the kernel knows them: all that files had until Linux 6.10. Later ones
/// (connecting to sockets) would need a list of front ends and journals.
const RESTRICTED: ABI = ABI::V5;

/// The folders on the list, without links.
static ALLOWED: OnceLock<Places> = OnceLock::new();

/// The folders that the daemon needs.
#[derive(Debug, Default)]
struct Places {
    /// Read only.
    read: BTreeSet<PathBuf>,
    /// Read, and files are written and replaced: by `keep`, `port add --keep`, `set add --keep`.
    kept: BTreeSet<PathBuf>,
    /// Sockets are made and removed.
    sockets: BTreeSet<PathBuf>,
}

/// Restricts this thread, and all that it starts. Returns the version of Landlock that is in force, or `None` if the kernel
/// has none.
pub(super) fn confine(config: &Config, file: &Path) -> Result<Option<i32>, RulesetError> {
    let places = Places::of(config, file);
    let created = Ruleset::default()
        .handle_access(AccessFs::from_all(RESTRICTED))?
        // The daemon accepts connections of TCP, and makes none.
        .handle_access(AccessNet::ConnectTcp)?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let kept =
        read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let sockets = AccessFs::ReadDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::RemoveDir;
    let rules = |paths: &BTreeSet<PathBuf>, rights: BitFlags<AccessFs>| {
        path_beneath_rules(paths.clone(), rights)
    };
    let status = created
        .add_rules(rules(&places.read, read))?
        .add_rules(rules(&places.kept, kept))?
        .add_rules(rules(&places.sockets, sockets))?
        .restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => Some(kernel_abi.unwrap_or(effective_abi as i32)),
        _ => None,
    };
    let abi = abi.filter(|_| status.ruleset != RulesetStatus::NotEnforced);
    if abi.is_some() {
        let _ = ALLOWED.set(places);
    }
    Ok(abi)
}

impl Places {
    fn of(config: &Config, file: &Path) -> Places {
        let mut places = Places::default();
        places.read.extend(READ.map(PathBuf::from));
        // For the names of functions, where a panic prints them.
        places.read.extend(std::env::current_exe().ok());
        let tls = config.metrics.tls.iter();
        let of_tls = tls.flat_map(|tls| {
            [
                Some(&tls.certificate),
                Some(&tls.key),
                tls.client_ca.as_ref(),
            ]
        });
        let of_metrics = of_tls.flatten().chain(&config.metrics.token_file);
        let folders = of_metrics.flat_map(|file| folders_of_file(file));
        places.read.extend(folders);
        let set_files = config.sets.iter().filter_map(|set| set.file.as_deref());
        let files = [file].into_iter().chain(set_files);
        let kept = files.flat_map(folders_of_file);
        places.kept.extend(kept);
        places.kept.extend(config.ports_dir.clone());
        places.kept.extend(KEPT.map(PathBuf::from));
        let of_guests = config.ports.iter().filter_map(|port| match &port.kind {
            PortKind::Vhost(guest) => Some(guest.socket.as_path()),
            PortKind::Xdp(_) => None,
        });
        let all = of_guests.chain([config.control.socket.as_path()]);
        let folders = all.filter_map(Path::parent).filter_map(existing);
        places.sockets.extend(folders.map(Path::to_owned));
        places.sockets.extend(SOCKETS.map(PathBuf::from));
        for folder in &config.sandbox.paths {
            places.kept.insert(folder.clone());
            places.sockets.insert(folder.clone());
        }
        places.without_links()
    }

    fn without_links(self) -> Places {
        let real = |paths: BTreeSet<PathBuf>| {
            let real = paths.into_iter().map(|path| path.canonicalize());
            real.filter_map(Result::ok).collect()
        };
        Places {
            read: real(self.read),
            kept: real(self.kept),
            sockets: real(self.sockets),
        }
    }
}

/// The folder of a file, and of the file that it links to.
fn folders_of_file(file: &Path) -> Vec<PathBuf> {
    let given = std::path::absolute(file).ok();
    let all = [given, file.canonicalize().ok()].into_iter().flatten();
    all.filter_map(|path| path.parent().map(Path::to_owned))
        .collect()
}

/// The folder, or the closest one above it that exists, since the daemon makes the rest. The root folder is not one of them: it
/// would allow everything.
fn existing(folder: &Path) -> Option<&Path> {
    let mut above = folder.ancestors().take_while(|one| one.parent().is_some());
    above.find(|one| one.is_dir())
}

/// Adds to an error that a socket's folder is not on the list, if that is the reason.
pub(crate) fn explain(path: &Path, why: io::Error) -> io::Error {
    // Not found: the folder could not be made either.
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound];
    let allowed = ALLOWED.get().filter(|_| kinds.contains(&why.kind()));
    let is_on_list = |places: &Places| {
        let folder = path.parent().and_then(existing);
        let folder = folder.and_then(|folder| folder.canonicalize().ok());
        folder.is_some_and(|folder| places.sockets.iter().any(|one| folder.starts_with(one)))
    };
    match allowed.is_some_and(|places| !is_on_list(places)) {
        true => io::Error::new(
            why.kind(),
            format!(
                "{why}: the sandbox allows sockets only below /run and the folders that the configuration named when the daemon started: restart the daemon, or first add the folder to `[sandbox] paths`"
            ),
        ),
        false => why,
    }
}
