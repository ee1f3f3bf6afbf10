//! `[sandbox]`: what the daemon gives up once it has read its configuration.

use std::path::{Path, PathBuf};

use super::limits::{PATH_BYTES_MAX, SANDBOX_PATHS_MAX};
use super::text_list::TextList;

pub(super) use super::table::Sandbox;

/// A capability that the daemon may keep besides the four that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptCapability {
    /// Giving a socket to any group, and a folder that is made again to its owner.
    Chown,
    /// Reading and writing files of other users.
    DacOverride,
    /// Changing the modes of other users' files.
    Fowner,
}

impl KeptCapability {
    /// All of them, by their names in capabilities(7).
    pub const ALL: [(KeptCapability, &'static str); 3] = [
        (KeptCapability::Chown, "CAP_CHOWN"),
        (KeptCapability::DacOverride, "CAP_DAC_OVERRIDE"),
        (KeptCapability::Fowner, "CAP_FOWNER"),
    ];

    /// Its name in capabilities(7).
    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(one, _)| *one == self);
        named.map_or("", |(_, name)| name)
    }
}

impl Sandbox {
    /// Nothing is given up.
    pub const OFF: Sandbox = Sandbox {
        capabilities: false,
        keep_capabilities: Vec::new(),
        seccomp: false,
        landlock: false,
        paths: Vec::new(),
    };
}

/// A list of capabilities, perhaps empty.
pub(super) fn kept() -> TextList<KeptCapability> {
    TextList {
        items: "capabilities",
        item: "a capability",
        must: "\"CAP_CHOWN\", \"CAP_DAC_OVERRIDE\" or \"CAP_FOWNER\"",
        items_max: KeptCapability::ALL.len(),
        empty: None,
        too_many: "write each once",
        help: "for example: keep_capabilities = [\"CAP_CHOWN\"]",
        parse: |text| {
            let named = KeptCapability::ALL.iter().find(|(_, name)| *name == text);
            named.map(|(one, _)| *one).ok_or(("none of these", None))
        },
        write: |one| one.name().to_owned(),
        pattern: "^CAP_(CHOWN|DAC_OVERRIDE|FOWNER)$",
    }
}

/// A list of absolute paths of folders, perhaps empty.
pub(super) fn paths() -> TextList<PathBuf> {
    TextList {
        items: "paths of folders",
        item: "a folder",
        must: "an absolute path",
        items_max: SANDBOX_PATHS_MAX,
        empty: None,
        too_many: "name a folder above several of them",
        help: "for example: paths = [\"/srv/guests\"]",
        parse: |text| match Path::new(text).is_absolute() {
            _ if text.contains('\0') => Err(("no path has a zero byte in it", None)),
            _ if text.len() > PATH_BYTES_MAX => Err(("longer than the kernel accepts", None)),
            true => Ok(PathBuf::from(text)),
            false => Err(("does not begin with /", None)),
        },
        write: |path| path.to_string_lossy().into_owned(),
        pattern: "^/",
    }
}
