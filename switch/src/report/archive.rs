//! The archive: files in memory, a list of what is missing, and how they are written.

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

/// The most files taken from one folder.
const FOLDER_FILES_MAX: usize = 1024;
/// Only the archive's owner may read it.
const MODE: u32 = 0o600;

/// Files that were gathered, and a list of those that could not be.
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
    /// Its source: a file, or the program that was asked.
    pub from: String,
    /// Its size, bytes.
    pub bytes: usize,
    /// Whether the file was too long, so that its beginning is missing.
    pub cut: bool,
}

/// A file that is not in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The path that it would have.
    pub path: String,
    /// Its source.
    pub from: String,
    /// Why it is missing.
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
    /// The files that were gathered.
    pub fn files(&self) -> impl Iterator<Item = &Gathered> {
        self.files.iter().map(|(file, _)| file)
    }

    /// The files that could not be gathered.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Adds a file with this content; only its end if it is very long.
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

    /// Notes that a file is missing.
    pub(super) fn miss(&mut self, path: &str, from: &str, why: impl Display) {
        self.missing.push(Missing {
            path: path.to_owned(),
            from: from.to_owned(),
            why: why.to_string(),
        });
    }

    /// Adds the content, or notes the error.
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
            // A user that may write to the folder could link to a file that only root may read.
            match fs::symlink_metadata(file) {
                Ok(found) if found.is_symlink() => {
                    self.miss(&place, &file.display().to_string(), "it is a link");
                }
                _ => self.add_file(&place, file),
            }
        }
        if files.len() > FOLDER_FILES_MAX {
            let why = format!(
                "there are {} files; only {FOLDER_FILES_MAX} are included",
                files.len()
            );
            self.miss(path, &folder.display().to_string(), why);
        }
    }

    /// Writes the archive to a new file with mode 0600, its files in a folder of this name.
    ///
    /// # Errors
    ///
    /// The file exists already, or it cannot be written; then it is removed.
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

/// All of a file, or at most the size that is kept of one: files of the kernel have no known size, and may never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut options = OpenOptions::new();
    // A pipe without a writer must not block us.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = options.read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}
