//! Certificates for tests, made by `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Dates of a certificate, as in "20200101000000Z".
pub type Dates = (&'static str, &'static str);

/// Valid for as long as the tests are run.
pub const VALID: Dates = ("20200101000000Z", "21000101000000Z");
const CONFIG: &str = "[ca]\ndefault_ca = d\n[d]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\n\
    policy = p\ncopy_extensions = copy\nunique_subject = no\n[p]\ncommonName = supplied\n";

/// An authority, and the folder with its files: `ca.crt`, and those that it has made.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = tempfile::tempdir().expect("a directory can be made");
        let authority = Authority { folder };
        for (name, text) in [("ca.cnf", CONFIG), ("index", ""), ("serial", "01\n")] {
            fs::write(authority.path(name), text).expect("written");
        }
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=authority -keyout ca.key -out ca.crt",
        );
        authority
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `openssl` in the folder.
    pub fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        let output = command
            .args(words.split(' '))
            .current_dir(self.folder())
            .output()
            .expect("apt-get install openssl");
        assert!(output.status.success(), "openssl {words}: {output:?}");
    }

    /// Makes `NAME.crt` and `NAME.key`, for 127.0.0.1 and for clients.
    pub fn make(&self, name: &str, dates: Dates) {
        self.make_of_kind(name, "ec -pkeyopt ec_paramgen_curve:P-256", dates);
    }

    /// Like [`make`](Self::make), with a key of this kind: "rsa:2048", "ed25519".
    pub fn make_of_kind(&self, name: &str, kind: &str, (from, to): Dates) {
        self.openssl(&format!(
            "req -newkey {kind} -nodes -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "ca -batch -notext -config ca.cnf -in {name}.csr -cert ca.crt -keyfile ca.key -startdate {from} -enddate {to} -out {name}.crt"
        ));
    }
}
