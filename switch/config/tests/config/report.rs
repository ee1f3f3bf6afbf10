//! Reports of mistakes as snapshots, for the tests of single mistakes.

use crosspoint_config::{Config, ConfigError};

/// The configuration of these lines, which have no mistake.
pub fn parse(lines: &str) -> Config {
    match Config::parse("switch.toml", &format!("version = 1\n{lines}")) {
        Ok(config) => config,
        Err(error) => panic!("{}", error.render()),
    }
}

/// The mistakes of these lines.
pub fn error(lines: &str) -> ConfigError {
    Config::parse("switch.toml", &format!("version = 1\n{lines}")).expect_err("a mistake")
}

/// Compares the whole report with the snapshot of this case.
pub fn snapshot(case: &str, error: &ConfigError) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(format!("config_{case}"), error.render()));
}
