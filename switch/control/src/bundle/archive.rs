//! The archive: files in memory, what is missing, and how they are written.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::FILE_BYTES_MAX;

/// The most files of one folder.
const FOLDER_FILES_MAX: usize = 1024;
/// Who has the archive may read it, and nobody else.
const MODE: u32 = 0o600;

/// What was gathered, and what could not be.
#[derive(Debug, Default)]
pub struct Archive {
    files: Vec<(Gathered, Vec<u8>)>,
    missing: Vec<Missing>,
}

/// A file of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gathered {
    /// Its path in the archive's folder.
    pub path: String,
    /// Where it comes from: a file, or who was asked.
    pub from: String,
    /// Its size, bytes.
    pub bytes: usize,
    /// Whether its beginning was too much and is not here.
    pub cut: bool,
}

/// A file that is not in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The path that it would have.
    pub path: String,
    /// Where it would come from.
    pub from: String,
    /// Why it is not here.
    pub why: String,
}

#[derive(Serialize)]
struct Manifest<'a> {
    crosspoint: &'a str,
    made_at_unix_s: u64,
    files: Vec<&'a Gathered>,
    missing: &'a [Missing],
}

impl Archive {
    /// What was gathered.
    pub fn files(&self) -> impl Iterator<Item = &Gathered> {
        self.files.iter().map(|(file, _)| file)
    }

    /// What could not be.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Adds a file of this content, or its end if it is very long.
    pub(super) fn add(&mut self, path: &str, from: &str, content: impl Into<Vec<u8>>) {
        let mut content = content.into();
        let beyond = content.len().saturating_sub(FILE_BYTES_MAX);
        content.drain(..beyond);
        let file = Gathered {
            path: path.to_owned(),
            from: from.to_owned(),
            bytes: content.len(),
            cut: beyond > 0,
        };
        self.files.push((file, content));
    }

    /// Notes that a file cannot be had.
    pub(super) fn miss(&mut self, path: &str, from: &str, why: impl Display) {
        self.missing.push(Missing {
            path: path.to_owned(),
            from: from.to_owned(),
            why: why.to_string(),
        });
    }

    /// Adds what there is, or notes why there is none.
    pub(super) fn take<E: Display>(
        &mut self,
        path: &str,
        from: &str,
        content: Result<impl Into<Vec<u8>>, E>,
    ) {
        match content {
            Ok(content) => self.add(path, from, content),
            Err(why) => self.miss(path, from, why),
        }
    }

    /// Adds a copy of a file.
    pub(super) fn add_file(&mut self, path: &str, file: &Path) {
        self.take(path, &file.display().to_string(), read(file));
    }

    /// Adds copies of the files in a folder whose names end in `.END`.
    pub(super) fn add_folder(&mut self, path: &str, folder: &Path, end: &str) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(why) => return self.miss(path, &folder.display().to_string(), why),
        };
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<_> = files
            .filter(|file| file.extension().is_some_and(|has| has == end))
            .collect();
        files.sort();
        for file in files.iter().take(FOLDER_FILES_MAX) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let place = format!("{path}/{name}");
            // Who may write to the folder could have us pack what only root may read.
            match fs::symlink_metadata(file) {
                Ok(found) if found.is_symlink() => {
                    self.miss(&place, &file.display().to_string(), "it is a link");
                }
                _ => self.add_file(&place, file),
            }
        }
        if files.len() > FOLDER_FILES_MAX {
            let why = format!(
                "there are {} files, and {FOLDER_FILES_MAX} are here",
                files.len()
            );
            self.miss(path, &folder.display().to_string(), why);
        }
    }

    /// Writes the archive to a new file with mode 0600, its files in a folder of this name.
    ///
    /// # Errors
    ///
    /// There is such a file already, or it cannot be written; then it is removed.
    pub fn write(&self, path: &Path, folder: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(MODE).open(path)?;
        self.pack(BufWriter::new(file), folder).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })
    }

    fn pack(&self, file: BufWriter<File>, folder: &str) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.unwrap_or_default().as_secs();
        let manifest = Manifest {
            crosspoint: env!("CARGO_PKG_VERSION"),
            made_at_unix_s: now_s,
            files: self.files().collect(),
            missing: &self.missing,
        };
        let mut manifest = serde_json::to_vec_pretty(&manifest)?;
        manifest.push(b'\n');
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let files = self
            .files
            .iter()
            .map(|(file, content)| (file.path.as_str(), content));
        for (path, content) in std::iter::once(("manifest.json", &manifest)).chain(files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(MODE);
            header.set_mtime(now_s);
            header.set_entry_type(tar::EntryType::Regular);
            tar.append_data(&mut header, format!("{folder}/{path}"), content.as_slice())?;
        }
        let mut file = tar.into_inner()?.finish()?;
        file.flush()?;
        file.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()
    }
}

/// All of a file, if it is no larger than what is kept of one: those of the kernel tell no size, and may never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut options = OpenOptions::new();
    // A pipe that nobody writes to must not hold us up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = options.read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}
