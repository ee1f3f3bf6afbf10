//! Information from the kernel and systemd.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Archive, FILE_BYTES_MAX};

/// Files that every kernel has.
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/interrupts",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/net/dev",
    "/proc/net/softnet_stat",
    "/proc/softirqs",
    "/proc/stat",
    "/proc/sys/net/core/busy_poll",
    "/proc/sys/net/core/netdev_budget",
    "/proc/sys/net/core/netdev_max_backlog",
    "/proc/sys/kernel/sched_rt_runtime_us",
    "/proc/sys/vm/nr_hugepages",
    "/proc/version",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/smt/active",
    "/sys/kernel/mm/transparent_hugepage/enabled",
];
/// Folders, the prefix of their subfolders' names, and the files to take from each subfolder.
const FAMILIES: &[(&str, &str, &[&str])] = &[
    (
        "/sys/devices/system/node",
        "node",
        &["cpulist", "distance", "meminfo"],
    ),
    (
        "/sys/kernel/mm/hugepages",
        "hugepages-",
        &["nr_hugepages", "free_hugepages"],
    ),
];
/// The longest that systemd's programs may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(15);
/// Lines taken of the log.
const LOG_LINES: &str = "1000";

/// Copies files of the kernel below `root`.
pub(super) fn gather(archive: &mut Archive, root: &Path) {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    for path in FILES {
        archive.add_file(&format!("host{path}"), &below(path));
    }
    for (folder, family, files) in FAMILIES {
        let entries = fs::read_dir(below(folder)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(family)).collect();
        names.sort();
        for name in names {
            for file in *files {
                let path = format!("{folder}/{name}/{file}");
                archive.add_file(&format!("host{path}"), &below(&path));
            }
        }
    }
}

/// The last lines of the log, and the unit as systemd has it.
pub(super) fn journal(archive: &mut Archive, unit: &str) {
    let log = [
        "-u",
        unit,
        "-n",
        LOG_LINES,
        "--no-pager",
        "-o",
        "short-iso-precise",
    ];
    let show = ["show", unit, "--no-pager"];
    for (path, program, words) in [
        ("log.txt", "journalctl", &log[..]),
        ("unit.txt", "systemctl", &show),
    ] {
        let from = format!("{program} {}", words.join(" "));
        let output = output_of(program, words).and_then(|text| match text.as_slice() {
            b"" | b"-- No entries --\n" => Err(format!("it has no entries for {unit}")),
            _ => Ok(text),
        });
        archive.take(path, &from, output);
    }
}

/// What a program prints, if it succeeds in time.
fn output_of(program: &str, words: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed"),
        _ => why.to_string(),
    })?;
    let (printed, complained) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let status = wait(&mut child).map_err(|why| why.to_string())?;
    let (printed, complained) = (text_of(printed), text_of(complained));
    match status {
        Some(true) => Ok(printed),
        Some(false) => {
            let said = String::from_utf8_lossy(&complained);
            Err(format!("{program} failed: {}", said.trim()))
        }
        None => Err(format!(
            "{program} took longer than {} s",
            COMMAND_TIME_MAX.as_secs()
        )),
    }
}

type Drained = Option<JoinHandle<Vec<u8>>>;

/// Reads a pipe on a separate thread: a program whose output is not read does not end.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Drained {
    let mut pipe = pipe?;
    let reading = move || {
        let mut text = Vec::new();
        let _ = pipe
            .by_ref()
            .take(FILE_BYTES_MAX as u64)
            .read_to_end(&mut text);
        // The rest is discarded, but must be read.
        let _ = io::copy(&mut pipe, &mut io::sink());
        text
    };
    std::thread::Builder::new().spawn(reading).ok()
}

fn text_of(drained: Drained) -> Vec<u8> {
    drained
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// Whether the program succeeded; `None` if it had to be killed.
fn wait(child: &mut Child) -> io::Result<Option<bool>> {
    let deadline = Instant::now() + COMMAND_TIME_MAX;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_or_fails_is_told_of() {
        assert_eq!(
            output_of("no-such-program", &[]),
            Err("no-such-program is not installed".to_owned())
        );
        let failed = output_of("sh", &["-c", "echo out; echo why >&2; exit 3"]);
        assert_eq!(failed, Err("sh failed: why".to_owned()));
        let much = output_of("sh", &["-c", "head -c 1000000 /dev/zero"]);
        assert_eq!(much.map(|text| text.len()), Ok(1_000_000));
    }
}
