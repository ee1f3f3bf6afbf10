//! From a file to a [`Config`], or to a list of everything that is wrong with it.

use std::{fs::File, io, io::Read as _, path::Path};

use serde::Deserialize as _;
use toml::de::DeTable;

use super::check::Checker;
use super::error::{ConfigError, Problem, SourceFile};
use super::limits::FILE_BYTES_MAX;
use super::raw::RawConfig;
use super::{Config, Cores, cores, keys, ports, sections, syntax};

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, is longer than [`FILE_BYTES_MAX`], is not UTF-8, or is no configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let bytes = read(path).map_err(|error| unreadable(&name, &error))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            let message = format!("{name} is longer than {FILE_BYTES_MAX} bytes");
            let problem = Problem::unplaced(
                message,
                "a configuration is much smaller: is this the right file?",
            );
            return Err(ConfigError::one(&name, problem));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&name, &text),
            Err(error) => Err(not_utf8(
                &name,
                error.as_bytes(),
                error.utf8_error().valid_up_to(),
            )),
        }
    }

    /// Checks a text; `name` is what messages call it.
    ///
    /// # Errors
    ///
    /// The first mistake in the syntax; or else everything else that is wrong, in the order of the file.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut checker = Checker::new(SourceFile::new(name, text));
        let mut document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => return Err(syntax::error(checker, &error)),
        };
        keys::sift_unknown(&mut checker, document.get_mut());
        match RawConfig::deserialize(toml::Deserializer::from(document)) {
            Ok(raw) => check(checker, raw),
            Err(error) => Err(syntax::error(checker, &error)),
        }
    }
}

fn check(mut checker: Checker, raw: RawConfig) -> Result<Config, ConfigError> {
    if !sections::version(&mut checker, raw.version) {
        return Err(checker.into_error());
    }
    let workers = checker.section(raw.workers, "workers");
    let (workers, core_spans) = sections::workers(&mut checker, workers);
    let switch = checker.section(raw.switch, "switch");
    let switch = sections::switch(&mut checker, switch);
    let metrics = checker.section(raw.metrics, "metrics");
    let metrics = sections::metrics(&mut checker, metrics);
    let control = checker.section(raw.control, "control");
    let (control, control_span) = sections::control(&mut checker, control);
    let log = checker.section(raw.log, "log");
    let log = sections::log(&mut checker, log);
    let mut taken = ports::Taken::new(control.socket.clone(), control_span);
    let ports = ports::ports(&mut checker, raw.port, &mut taken);
    if let Cores::List(cores) = &workers.cores
        && !cores.is_empty()
    {
        cores::check_workers(&mut checker, &ports, &taken.workers, cores.len());
    }
    let core_spans = core_spans.with_workers(&checker, taken.workers);
    checker.finish()?;
    Ok(Config {
        workers,
        switch,
        metrics,
        control,
        log,
        ports,
        core_spans,
    })
}

/// One byte more than the limit, to tell a file that has just the limit from a longer one.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(name: &str, error: &io::Error) -> ConfigError {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "check the path; configs/reference.toml is a file to begin with",
        io::ErrorKind::PermissionDenied => {
            "the switch's user must be allowed to read the file and enter its directory"
        }
        io::ErrorKind::IsADirectory => "give the path of a file in this directory",
        _ => "check the path and the file system",
    };
    ConfigError::one(
        name,
        Problem::unplaced(format!("cannot read {name}: {error}"), help),
    )
}

fn not_utf8(name: &str, bytes: &[u8], valid_up_to: usize) -> ConfigError {
    // What is valid stays as it is, so the first replacement character stands where the first bad byte did.
    let mut checker = Checker::new(SourceFile::new(name, &String::from_utf8_lossy(bytes)));
    let span = valid_up_to..valid_up_to + char::REPLACEMENT_CHARACTER.len_utf8();
    let byte = bytes.get(valid_up_to).copied().unwrap_or_default();
    checker.problem(
        span,
        "the file is not UTF-8 text".to_owned(),
        &format!("byte 0x{byte:02x}"),
        "save it as UTF-8, or remove this character",
    );
    checker.into_error()
}
