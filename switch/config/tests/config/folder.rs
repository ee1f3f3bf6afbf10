//! A configuration in several files: the main file, and those of its `ports_dir`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crosspoint_config::{Config, ConfigError, Loaded, limits};
use proptest::prelude::*;
use proptest::sample::select;
use tempfile::TempDir;

/// A main file and a folder.
pub(crate) struct Files(TempDir);

pub(crate) const MAIN: &str = "version = 1\nports_dir = \"ports.d\"\n";

pub(crate) fn guest(name: &str, socket: &str) -> String {
    format!("[[port]]\nname = {name:?}\ntype = \"vhost\"\nsocket = \"/run/{socket}\"\n")
}

fn uplink(name: &str, interface: &str) -> String {
    format!("[[port]]\nname = {name:?}\ntype = \"xdp\"\ninterface = {interface:?}\n")
}

impl Files {
    pub(crate) fn new(main: &str, files: &[(&str, &str)]) -> Files {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let all = Files(directory);
        fs::write(all.main(), main).expect("it is ours");
        fs::create_dir(all.folder()).expect("it is not there");
        for (name, text) in files {
            all.write(name, text);
        }
        all
    }

    pub(crate) fn main(&self) -> PathBuf {
        self.0.path().join("switch.toml")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.0.path().join("ports.d")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder().join(name), text).expect("the folder is there");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder().join(name)).expect("it is there");
    }

    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.main())
    }

    fn error(&self) -> ConfigError {
        self.load().expect_err("a mistake")
    }

    fn lenient(&self, previous: Option<&Loaded>) -> Loaded {
        Config::load_lenient(&self.main(), previous, &[0, 1, 2])
            .unwrap_or_else(|error| panic!("{}", error.render()))
    }

    /// The report, without the directory's name.
    fn report(&self, error: &ConfigError) -> String {
        let directory = format!("{}/", self.0.path().display());
        error.render().replace(&directory, "")
    }
}

pub(crate) fn names(config: &Config) -> Vec<&str> {
    config.ports.iter().map(|port| &*port.name).collect()
}

/// The names of the ports, and the files with problems.
fn outcome(loaded: &Loaded) -> (Vec<&str>, BTreeSet<&str>) {
    let problems = loaded.problems.iter().flat_map(ConfigError::problems);
    let files = problems.map(|problem| {
        let path = problem.file_name();
        path.rsplit('/').next().unwrap_or(path)
    });
    (names(&loaded.config), files.collect())
}

#[test]
fn ports_come_from_all_files_in_the_order_of_names() {
    let files = Files::new(
        &[MAIN, &uplink("up0", "eth0")].concat(),
        &[
            ("b.toml", &guest("b", "b")),
            (
                "a.toml",
                &["version = 1\n", &guest("z", "z"), &guest("y", "y")].concat(),
            ),
            ("10.toml", ""),
            (".hidden.toml", "nonsense"),
            ("c.toml~", "nonsense"),
            ("README", "nonsense"),
        ],
    );
    let config = files.load().expect("all is right");
    assert_eq!(names(&config), ["up0", "z", "y", "b"]);
    assert_eq!(config.ports_dir, Some(files.folder()));
    // Also with an absolute path; and a guest in one file may name an uplink in another.
    let direct = format!(
        "{}direct = {{ uplink = \"up1\", queue = 1 }}\n",
        guest("a", "a")
    );
    files.write("0.toml", &direct);
    files.write("d.toml", &uplink("up1", "eth1"));
    let absolute = format!(
        "version = 1\nports_dir = {:?}\nwatch_ports = true\n",
        files.folder()
    );
    fs::write(files.main(), absolute).expect("it is ours");
    let config = files.load().expect("all is right");
    assert_eq!(names(&config), ["a", "z", "y", "b", "up1"]);
    assert!(config.watch_ports);
}

#[test]
fn a_clash_across_files_is_shown_in_both() {
    let direct = "direct = { uplink = \"up0\", queue = 1 }\n";
    let files = Files::new(
        &[
            MAIN,
            "workers.cores = [0]\n",
            &uplink("up0", "eth0"),
            &guest("web-1", "1"),
            direct,
        ]
        .concat(),
        &[
            ("a.toml", &guest("web-1", "2")),
            ("b.toml", &guest("web-3", "1")),
            ("c.toml", &uplink("up1", "eth0")),
            (
                "d.toml",
                &[&*guest("web-4", "4"), direct, "worker = 1\n"].concat(),
            ),
            ("e.toml", &guest("web-5", "crosspoint/control.sock")),
        ],
    );
    let error = files.error();
    let report = files.report(&error);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("config_clashes_across_files", report));
    let elsewhere = error
        .problems()
        .filter_map(|problem| problem.first_elsewhere());
    let lines: Vec<usize> = elsewhere.map(|(_, line, _)| line).collect();
    assert_eq!(lines, [9, 11, 7, 12]);
}

#[test]
fn each_bad_file_is_told_of_and_none_hides_the_mistakes_of_another() {
    let files = Files::new(
        &[
            MAIN,
            &guest("a", "a"),
            "mtu = 1\ndirect = { uplink = \"up9\", queue = 0 }\n",
        ]
        .concat(),
        &[
            ("1.toml", "port = [\n"),
            ("2.toml", "version = 2\ncolour = 1\n"),
            ("3.toml", "[workers]\npoll = \"busy\"\n"),
            ("4.toml", "[[port]]\nname = \"b\"\n"),
            ("6.toml", "workers = 1\n"),
        ],
    );
    fs::write(files.folder().join("5.toml"), b"# \xff").expect("the folder is there");
    let error = files.error();
    let of_files: Vec<(String, &str)> = error
        .problems()
        .map(|problem| {
            let name = problem.file_name().rsplit('/').next().unwrap_or_default();
            (name.to_owned(), problem.message())
        })
        .collect();
    let found: Vec<(&str, &str)> = of_files
        .iter()
        .map(|(name, message)| (&**name, *message))
        .collect();
    assert_eq!(
        found,
        [
            (
                "switch.toml",
                "`mtu` must be a whole number from 68 to 65535"
            ),
            ("1.toml", "unclosed array"),
            ("2.toml", "version 2 of the configuration is not known"),
            (
                "3.toml",
                "unknown key `workers` at the top level of a file of `ports_dir`"
            ),
            ("4.toml", "this port has no `type`"),
            ("5.toml", "the file is not UTF-8 text"),
            (
                "6.toml",
                "unknown key `workers` at the top level of a file of `ports_dir`"
            ),
        ],
        "that up9 does not exist cannot be said while files cannot be read"
    );
    assert_eq!(error.to_string(), "7 problems in 7 files");
    assert!(
        error
            .problems()
            .all(|problem| !problem.help_text().is_empty())
    );
}

#[test]
fn what_is_no_file_of_text_is_told_of() {
    let files = Files::new(MAIN, &[]);
    fs::create_dir(files.folder().join("a.toml")).expect("it is not there");
    let fifo = files.folder().join("b.toml");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a FIFO can be made");
    symlink("/nowhere", files.folder().join("c.toml")).expect("it is not there");
    let long = "#".repeat(limits::FILE_BYTES_MAX as usize + 1);
    files.write("d.toml", &long);
    let error = files.error();
    let messages: Vec<&str> = error.problems().map(|problem| problem.message()).collect();
    assert_eq!(messages.len(), 4);
    for (message, part) in
        messages
            .iter()
            .zip(["not a regular", "not a regular", "No such file", "longer"])
    {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_folder_that_cannot_be_read_is_a_mistake_with_its_line() {
    let files = Files::new(MAIN, &[]);
    fs::remove_dir(files.folder()).expect("it is empty");
    let error = files.error();
    let problem = error.problems().next().expect("a problem");
    assert_eq!(problem.line_and_column(), Some((2, 13)));
    assert!(
        problem.help_text().starts_with("make it: mkdir -p /"),
        "{}",
        problem.help_text()
    );
    assert!(Config::load_lenient(&files.main(), None, &[]).is_err());
    fs::write(files.folder(), "").expect("it is not there");
    assert!(files.report(&files.error()).contains("not a folder"));
    fs::write(files.main(), "version = 1\nwatch_ports = true\n").expect("it is ours");
    assert!(
        files
            .report(&files.error())
            .contains("there is no `ports_dir`")
    );
}

#[test]
fn no_more_files_and_bytes_are_read_than_the_limits_say() {
    let files = Files::new(MAIN, &[]);
    for number in 0..limits::PORTS_DIR_FILES_MAX {
        files.write(&format!("{number}.toml"), "");
    }
    files.load().expect("as many as may be");
    files.write("x.toml", "");
    assert!(files.report(&files.error()).contains("too many files"));
    let files = Files::new(MAIN, &[]);
    let text = "#".repeat(limits::FILE_BYTES_MAX as usize);
    for number in 0..=limits::PORTS_DIR_BYTES_MAX / limits::FILE_BYTES_MAX {
        files.write(&format!("{number}.toml"), &text);
    }
    let error = files.error();
    assert_eq!(error.problems().count(), 1);
    let (config, bad) = (files.lenient(None), ["8.toml"].into());
    assert_eq!(outcome(&config), (Vec::new(), bad));
}

#[test]
fn a_bad_file_costs_no_other_files_ports() {
    let files = Files::new(
        &[MAIN, &uplink("up0", "eth0")].concat(),
        &[
            ("a.toml", &guest("a", "a")),
            ("b.toml", "nonsense"),
            ("c.toml", &guest("c", "c")),
        ],
    );
    let first = files.lenient(None);
    assert_eq!(outcome(&first), (vec!["up0", "a", "c"], ["b.toml"].into()));
    // A good port stays unchanged while its file is bad, and is removed with its file.
    files.write("b.toml", &guest("b", "b"));
    files.write("c.toml", "nonsense");
    let second = files.lenient(Some(&first));
    assert_eq!(
        outcome(&second),
        (vec!["up0", "a", "b", "c"], ["c.toml"].into())
    );
    let third = files.lenient(Some(&second));
    assert_eq!(
        third.config, second.config,
        "it stays so, however often it is read"
    );
    files.remove("c.toml");
    let fourth = files.lenient(Some(&third));
    assert_eq!(outcome(&fourth), (vec!["up0", "a", "b"], BTreeSet::new()));
    assert_eq!(Some(fourth.config), files.load().ok());
    // The main file must be correct.
    fs::write(files.main(), [MAIN, "colour = 1\n"].concat()).expect("it is ours");
    assert!(Config::load_lenient(&files.main(), Some(&third), &[]).is_err());
}

#[test]
fn of_two_files_that_clash_what_runs_stays_and_else_the_first() {
    let files = Files::new(
        MAIN,
        &[("b.toml", &guest("b", "1")), ("c.toml", &guest("c", "1"))],
    );
    let first = files.lenient(None);
    assert_eq!(outcome(&first), (vec!["b"], ["c.toml"].into()));
    // A new file with an earlier name does not displace it.
    files.write("a.toml", &guest("a", "1"));
    let second = files.lenient(Some(&first));
    assert_eq!(outcome(&second), (vec!["b"], ["a.toml", "c.toml"].into()));
    // Of two new files, the first wins.
    files.write("b.toml", &guest("b", "2"));
    let third = files.lenient(Some(&second));
    assert_eq!(outcome(&third), (vec!["a", "b"], ["c.toml"].into()));
    // The main file takes precedence.
    fs::write(files.main(), [MAIN, &guest("b", "3")].concat()).expect("it is ours");
    let fourth = files.lenient(Some(&third));
    assert_eq!(
        outcome(&fourth),
        (vec!["b", "a"], ["b.toml", "c.toml"].into())
    );
}

#[test]
fn an_uplink_that_takes_a_guests_queue_is_the_bad_one() {
    let direct = "direct = { uplink = \"up0\", queue = 1 }\n";
    let files = Files::new(
        MAIN,
        &[
            ("a.toml", &uplink("up0", "eth0")),
            ("b.toml", &[&guest("b", "b"), direct].concat()),
        ],
    );
    let first = files.lenient(None);
    assert_eq!(outcome(&first), (vec!["up0", "b"], BTreeSet::new()));
    files.write(
        "a.toml",
        &[&uplink("up0", "eth0"), "queues = [0, 1]\n"].concat(),
    );
    let second = files.lenient(Some(&first));
    assert_eq!(second.config, first.config);
    assert!(second.problems.is_some());
    // If nothing runs yet, the guest is the later one.
    assert_eq!(
        outcome(&files.lenient(None)),
        (vec!["up0"], ["b.toml"].into())
    );
}

#[test]
fn a_worker_that_there_is_not_costs_its_own_file_alone() {
    let bad = [&guest("a", "a"), "worker = 2\n"].concat();
    let files = Files::new(MAIN, &[("a.toml", &bad), ("b.toml", &guest("b", "b"))]);
    // Three cores make two workers.
    assert_eq!(
        outcome(&files.lenient(None)),
        (vec!["b"], ["a.toml"].into())
    );
}

/// Possible contents of files, which clash in every way.
fn text() -> impl Strategy<Value = String> {
    let pieces = vec![
        "version = 1\n",
        "version = 2\n",
        "[[port]]\n",
        "name = \"a\"\n",
        "name = \"b\"\n",
        "type = \"vhost\"\n",
        "type = \"xdp\"\n",
        "socket = \"/a\"\n",
        "socket = \"/b\"\n",
        "interface = \"eth0\"\n",
        "queues = [1]\n",
        "direct = { uplink = \"a\", queue = 1 }\n",
        "worker = 1\n",
        "worker = 9\n",
        "colour = 1\n",
        "port = 1\n",
        "port = [1, {}]\n",
        "ports_dir = \"ports.d\"\n",
        "watch_ports = true\n",
        "\"",
        "é",
        "\u{0}",
        "\u{1b}[2J",
        "workers.cores = [0]\n",
    ];
    let ports = vec![
        guest("a", "a"),
        guest("b", "b"),
        guest("c", "a"),
        uplink("a", "eth0"),
        uplink("b", "eth0"),
        [&guest("d", "d"), "direct = { uplink = \"a\", queue = 1 }\n"].concat(),
        [&uplink("a", "eth1"), "queues = [1]\n"].concat(),
    ];
    let ports = proptest::collection::vec(select(ports), 1..3).prop_map(|ports| ports.concat());
    prop_oneof![
        3 => ports,
        1 => proptest::collection::vec(select(pieces), 0..8).prop_map(|pieces| pieces.concat()),
        1 => "(?s:.{0,20})",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// However files change, the loaded configuration is valid, and complete if all files are.
    #[test]
    fn any_files_are_read_or_refused(
        mains in proptest::collection::vec(prop_oneof![
            2 => Just(MAIN.to_owned()),
            1 => text().prop_map(|text| format!("{MAIN}{text}")),
            1 => text(),
        ], 3),
        rounds in proptest::collection::vec(
            proptest::collection::btree_map("[a-d]", text(), 0..4), 3),
    ) {
        let files = Files::new("", &[]);
        let mut previous: Option<Loaded> = None;
        for (main, texts) in mains.into_iter().zip(rounds) {
            fs::write(files.main(), main).expect("it is ours");
            fs::remove_dir_all(files.folder()).expect("it is there");
            fs::create_dir(files.folder()).expect("it is gone");
            for (name, text) in &texts {
                files.write(&format!("{name}.toml"), text);
            }
            let strict = files.load();
            if let Err(error) = &strict {
                prop_assert!(error.problems().all(|p| !p.help_text().is_empty() && !p.file_name().is_empty()));
                prop_assert!(!error.render().contains("Failed to read"), "{}", error.render());
            }
            let Ok(loaded) = Config::load_lenient(&files.main(), previous.as_ref(), &[]) else {
                prop_assert!(strict.is_err());
                continue;
            };
            prop_assert_eq!(loaded.problems.is_none(), strict.is_ok());
            if let Ok(strict) = strict {
                prop_assert_eq!(&strict, &loaded.config);
            }
            // Its text as a single file is a valid configuration.
            let ports: String = loaded.config.ports.iter().map(|port| port.to_toml()).collect();
            let alone = Config::parse("all", &format!("version = 1\n{ports}")).map(|config| config.ports);
            prop_assert_eq!(alone.map_err(|error| error.render()), Ok(loaded.config.ports.clone()));
            previous = Some(loaded);
        }
    }
}
