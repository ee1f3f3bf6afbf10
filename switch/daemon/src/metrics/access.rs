//! The clients that may read the metrics, and how: what the files of `[metrics]` say.
//!
//! They are read before they are used, and as a whole: a file that is wrong changes nothing, so that the server keeps what it
//! had, or does not start. It never falls back to serving without TLS or token.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crosspoint_config::{Metrics, MetricsTls, Unreadable, read_file};
use hyper::header::{AUTHORIZATION, HeaderMap};
use miette::Diagnostic;
use rustls::ServerConfig;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::tls;

/// The largest file that is read, bytes. Certificates of all public authorities take a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest token, which leaves room in a request's header.
const TOKEN_BYTES_MAX: usize = 4096;
/// A shorter token can be found by trying.
const TOKEN_BYTES_SHORT: usize = 16;
/// Mode bits: readable by every user of the host.
const OTHERS_READ: u32 = 0o004;

/// The clients that may read the metrics, and how. The default: all, by plain HTTP.
#[derive(Clone, Default)]
pub struct Access {
    /// How the server's side of TLS is made; `None`: plain HTTP.
    pub(super) tls: Option<Arc<ServerConfig>>,
    token: Option<Arc<str>>,
    warnings: Vec<String>,
}

/// Why the files of `[metrics]` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
#[error("[metrics] {key}: {message}")]
pub struct AccessError {
    /// The key that names the file.
    key: &'static str,
    message: String,
    #[help]
    help: String,
}

impl AccessError {
    pub(super) fn new(
        key: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> AccessError {
        AccessError {
            key,
            message: message.into(),
            help: help.into(),
        }
    }
}

impl fmt::Debug for Access {
    /// Without the token and the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("tls", &self.tls.is_some())
            .field("token", &self.token.is_some())
            .field("warnings", &self.warnings)
            .finish()
    }
}

impl Access {
    /// Reads the files that `metrics` names, if any.
    ///
    /// # Errors
    ///
    /// The first file that cannot be read, or does not have what it should, or does not fit the others.
    pub fn read(metrics: &Metrics) -> Result<Access, AccessError> {
        let mut warnings: Vec<String> = of_listener(metrics).into_iter().collect();
        let tls = metrics.tls.as_ref();
        let tls = tls.map(|tls| read_tls(tls, &mut warnings)).transpose()?;
        let token = metrics.token_file.as_deref();
        let token = token.map(|file| read_token(file, &mut warnings));
        Ok(Access {
            tls,
            token: token.transpose()?,
            warnings,
        })
    }

    /// What is unwise about it, though it works: a line for each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether there are files to read, for these settings.
    pub(crate) fn has_files(metrics: &Metrics) -> bool {
        metrics.tls.is_some() || metrics.token_file.is_some()
    }

    /// Whether a request with these headers may have everything: it has the token, or none is needed. The comparison takes
    /// the same time for each token of the right length.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let given = headers.get(AUTHORIZATION).and_then(bearer);
        given.is_some_and(|given| bool::from(given.ct_eq(token.as_bytes())))
    }
}

/// The token of an `Authorization` header, if that is its scheme, whose case does not matter.
fn bearer(value: &hyper::header::HeaderValue) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| token.trim_ascii())
}

/// A warning if others than this host's programs can reach the listener, and may read what they should not.
fn of_listener(metrics: &Metrics) -> Option<String> {
    let listen = metrics.listen?;
    if listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let (exposed, remedy) = match (&metrics.tls, &metrics.token_file) {
        (Some(_), _) => return None,
        (None, None) => (
            "everyone who reaches it may read the names, the state and the traffic of all ports",
            "set `token_file` and `tls`, or listen on 127.0.0.1",
        ),
        (None, Some(_)) => (
            "the token crosses the network where others can read it",
            "set `tls` too",
        ),
    };
    Some(format!(
        "[metrics] listen = \"{listen}\" is not a loopback address: {exposed}; {remedy}"
    ))
}

fn read_tls(
    files: &MetricsTls,
    warnings: &mut Vec<String>,
) -> Result<Arc<ServerConfig>, AccessError> {
    let certificate = PemFile::read("tls.certificate", &files.certificate)?;
    let key = PemFile::read("tls.key", &files.key)?;
    let client_ca = files.client_ca.as_deref();
    let client_ca = client_ca.map(|path| PemFile::read("tls.client_ca", path));
    warnings.extend(readable_by_all("tls.key", &files.key));
    tls::config(
        &certificate,
        &key,
        client_ca.transpose()?.as_ref(),
        warnings,
    )
}

/// A file in PEM, and the key that names it.
pub(super) struct PemFile {
    pub key: &'static str,
    pub path: PathBuf,
    pub text: String,
}

impl PemFile {
    fn read(key: &'static str, path: &Path) -> Result<PemFile, AccessError> {
        Ok(PemFile {
            key,
            path: path.to_owned(),
            text: read(key, path)?,
        })
    }
}

fn read(key: &'static str, path: &Path) -> Result<String, AccessError> {
    let refused = |Unreadable { message, help }| AccessError::new(key, message, help);
    read_file(path, FILE_BYTES_MAX).map_err(refused)
}

fn read_token(path: &Path, warnings: &mut Vec<String>) -> Result<Arc<str>, AccessError> {
    const KEY: &str = "token_file";
    let text = read(KEY, path)?;
    let token = text.trim();
    let shown = path.display();
    let make = format!("make a token: openssl rand -hex 32 > {shown}; chmod 640 {shown}");
    // RFC 6750, 2.1.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    let wrong = match token {
        "" => "has no token in it".to_owned(),
        _ if token.len() > TOKEN_BYTES_MAX => {
            format!("has a token of more than {TOKEN_BYTES_MAX} bytes")
        }
        _ if !token.bytes().all(is_plain) => {
            "has more in it than a token: letters, digits and -._~+/=, on one line".to_owned()
        }
        _ => String::new(),
    };
    if !wrong.is_empty() {
        return Err(AccessError::new(KEY, format!("{shown} {wrong}"), make));
    }
    if token.len() < TOKEN_BYTES_SHORT {
        let short = token.len();
        warnings.push(format!(
            "[metrics] {KEY}: the token in {shown} has {short} characters, and can be guessed; {make}"
        ));
    }
    warnings.extend(readable_by_all(KEY, path));
    Ok(token.into())
}

/// A warning if every user of this host may read the secret in this file.
fn readable_by_all(key: &str, path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    let shown = path.display();
    (mode & OTHERS_READ != 0).then(|| {
        format!("[metrics] {key}: every user of this host may read {shown}; chmod o= {shown}")
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_in_its_scheme_is_admitted() {
        let access = Access {
            token: Some("s3cret-token".into()),
            ..Access::default()
        };
        let admits = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a value");
            access.admits(&HeaderMap::from_iter([(AUTHORIZATION, value)]))
        };
        for right in ["Bearer s3cret-token", "bearer  s3cret-token "] {
            assert!(admits(right), "{right}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer s3cret-toke",
            "Bearer s3cret-token2",
            "Bearer S3cret-token",
            "Basic s3cret-token",
            "s3cret-token",
        ] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(Access::default().admits(&HeaderMap::new()));
        assert!(!format!("{access:?}").contains("s3cret"));
    }
}
