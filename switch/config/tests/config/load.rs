//! Reading files.

use std::path::{Path, PathBuf};

use crosspoint_config::{Config, limits};

/// A file with this content, in a directory that cargo provides for this test.
fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("config-{}-{name}", std::process::id()));
    std::fs::write(&path, content).expect("the test's directory can be written");
    path
}

/// The report for a file that cannot be loaded, without the path's directory.
fn report(path: &Path) -> String {
    let error = Config::load(path).expect_err("not a configuration");
    assert!(
        error
            .problems()
            .all(|problem| !problem.help_text().is_empty())
    );
    format!(
        "{error}\n{}",
        error
            .problems()
            .map(|problem| problem.help_text())
            .collect::<String>()
    )
}

#[test]
fn a_file_is_loaded() {
    let path = file("good.toml", b"version = 1\n");
    assert_eq!(Config::load(&path).ok(), Some(Config::default()));
}

#[test]
fn a_missing_file_is_named() {
    let report = report(Path::new("/nowhere/switch.toml"));
    assert_eq!(
        report,
        "cannot read /nowhere/switch.toml: No such file or directory (os error 2)\n\
         check the path; configs/reference.toml is a file to begin with"
    );
}

#[test]
fn a_directory_is_no_file() {
    assert!(report(Path::new("/")).ends_with("give the path of a file in this directory"));
}

#[test]
fn a_file_at_the_limit_is_read_and_a_longer_one_is_not() {
    let mut content = b"version = 1\n#".to_vec();
    content.resize(limits::FILE_BYTES_MAX as usize, b'x');
    assert!(Config::load(&file("largest.toml", &content)).is_ok());
    content.push(b'x');
    assert!(report(&file("too-large.toml", &content)).contains("is longer than 1048576 bytes"));
}

#[test]
fn bytes_that_are_not_utf8_have_a_line_and_a_column() {
    let path = file("latin1.toml", b"version = 1\n# \xc3\xa9 M\xfcnchen\n");
    let error = Config::load(&path).expect_err("not UTF-8");
    let problem = error.problems().next().expect("a problem");
    assert_eq!(problem.message(), "the file is not UTF-8 text");
    assert_eq!(problem.line_and_column(), Some((2, 6)));
    assert!(error.render().contains("byte 0xfc"), "{}", error.render());
}
