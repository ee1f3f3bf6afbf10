//! The host's memory.

use crosspoint_config::HugePages;

use super::subject::{QUEUE_BYTES, Subject, counted};
use super::{Check, Finding, Severity};

const HUGE_PAGES: Check = Check {
    id: "huge-pages",
    looks_at: "Huge pages, reserved and free, of each size and on each memory node, against ports with `huge_pages = \"reserved\"`",
};
const TRANSPARENT: Check = Check {
    id: "transparent-huge-pages",
    looks_at: "Whether a process may ask for transparent huge pages, as ports with `huge_pages = \"transparent\"` do",
};
const BALANCING: Check = Check {
    id: "numa-balancing",
    looks_at: "Whether the kernel moves memory between nodes (`kernel.numa_balancing`), for which it makes workers fault",
};
const SWAP: Check = Check {
    id: "swap",
    looks_at: "Whether there is swap space that guest memory can be written to",
};

pub(super) const CHECKS: &[Check] = &[HUGE_PAGES, TRANSPARENT, BALANCING, SWAP];

/// Size of the huge pages that hold packet memory, KiB.
const PACKET_PAGE_KB: u64 = 2048;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = vec![huge_pages(subject)];
    findings.extend(transparent(subject));
    findings.extend(balancing(subject));
    findings.extend(swap(subject));
    findings
}

/// Huge pages of one size.
struct Pool {
    page_kb: u64,
    reserved: u64,
    free: u64,
}

/// The pools in a folder that has a subfolder for each page size.
fn pools(subject: &Subject<'_>, folder: &str) -> Vec<Pool> {
    let sizes = subject.host.list(folder);
    let pool = |name: &String| {
        let page_kb = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let count = |file: &str| {
            let number = subject.host.number(&format!("{folder}/{name}/{file}"));
            number.map_or(0, |number| number.max(0) as u64)
        };
        Some(Pool {
            page_kb: page_kb.parse().ok()?,
            reserved: count("nr_hugepages"),
            free: count("free_hugepages"),
        })
    };
    sizes.iter().filter_map(pool).collect()
}

/// `2 MiB: 512 reserved, 500 free (node 0: 300, node 1: 200)`
fn pool_text(subject: &Subject<'_>, pool: &Pool) -> String {
    let folder = "/sys/devices/system/node";
    let nodes = subject.host.list(folder);
    let of_node = |node: &String| {
        let number = node.strip_prefix("node")?;
        let _: u32 = number.parse().ok()?;
        let pools = pools(subject, &format!("{folder}/{node}/hugepages"));
        let same = pools.iter().find(|one| one.page_kb == pool.page_kb)?;
        Some(format!("node {number}: {}", same.free))
    };
    let nodes: Vec<String> = nodes.iter().filter_map(of_node).collect();
    let nodes = match nodes.len() {
        0 | 1 => String::new(),
        _ => format!(" ({})", nodes.join(", ")),
    };
    let size = match pool.page_kb {
        kb if kb >= 1 << 20 => format!("{} GiB", kb >> 20),
        kb if kb >= 1 << 10 => format!("{} MiB", kb >> 10),
        kb => format!("{kb} KiB"),
    };
    format!(
        "{size}: {} reserved, {} free{nodes}",
        pool.reserved, pool.free
    )
}

fn huge_pages(subject: &Subject<'_>) -> Finding {
    let folder = "/sys/kernel/mm/hugepages";
    let pools = pools(subject, folder);
    let reserved = subject
        .uplinks()
        .filter(|port| port.huge_pages == HugePages::Reserved);
    let bytes: u64 = reserved
        .map(|port| subject.queues_of(port) * QUEUE_BYTES)
        .sum();
    let needed = bytes.div_ceil(PACKET_PAGE_KB << 10);
    let packets = pools.iter().find(|pool| pool.page_kb == PACKET_PAGE_KB);
    let free = packets.map_or(0, |pool| pool.free);
    let fix = |count: u64| {
        let more = packets.map_or(0, |pool| pool.reserved) + count;
        vec![format!("sysctl -w vm.nr_hugepages={more}")]
    };
    let texts = pools.iter().filter(|pool| pool.reserved > 0);
    let texts: Vec<String> = texts.map(|pool| pool_text(subject, pool)).collect();
    if free < needed {
        let found = format!("ports need {needed} of 2 MiB, and {free} are free");
        let cost = "Ports with `huge_pages = \"reserved\"` do not open.";
        return HUGE_PAGES.finding(Severity::Error, "host", found, cost, fix(needed - free));
    }
    match texts.is_empty() {
        false => HUGE_PAGES.ok("host", texts.join("; ")),
        true => HUGE_PAGES.finding(
            Severity::Note,
            "host",
            "none are reserved",
            "Guest memory is in ordinary pages: copying frames misses the TLB more often. \
             1024 pages of 2 MiB hold 2 GiB of guests.",
            fix(1024),
        ),
    }
}

fn transparent(subject: &Subject<'_>) -> Option<Finding> {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let enabled = subject.host.read(file);
    let is_never = enabled.is_none_or(|text| text.contains("[never]"));
    let asks = |port: &crosspoint_config::XdpPort| port.huge_pages == HugePages::Transparent;
    let asking = subject.uplinks().filter(|port| asks(port)).count() as u64;
    match (is_never, asking) {
        (false, _) => Some(TRANSPARENT.ok("host", "a process gets them if it asks")),
        (true, 0) => None,
        (true, _) => Some(TRANSPARENT.finding(
            Severity::Note,
            "host",
            format!(
                "no process gets them, but {} asks for them",
                counted(asking, "port")
            ),
            "Packet memory is in ordinary pages: more TLB misses.",
            vec![format!("echo madvise > {file}")],
        )),
    }
}

fn balancing(subject: &Subject<'_>) -> Option<Finding> {
    let is_on = subject.host.number("/proc/sys/kernel/numa_balancing")? != 0;
    Some(match is_on {
        false => BALANCING.ok("host", "the kernel does not move memory between nodes"),
        true => BALANCING.finding(
            Severity::Note,
            "host",
            "the kernel moves memory between nodes by itself",
            "It unmaps pages to find out which core uses them: workers take page faults, again and again.",
            vec!["sysctl -w kernel.numa_balancing=0".to_owned()],
        ),
    })
}

fn swap(subject: &Subject<'_>) -> Option<Finding> {
    let areas = subject.host.read("/proc/swaps")?;
    let areas = areas.lines().count().saturating_sub(1) as u64;
    Some(match areas {
        0 => SWAP.ok("host", "there is no swap space"),
        _ => SWAP.finding(
            Severity::Note,
            "host",
            format!("there is swap space: {}", counted(areas, "area")),
            "Guest memory that is not locked or in huge pages can be written there: a worker that \
             meets such a page waits for the disk.",
            vec![
                "swapoff -a".to_owned(),
                "# or lock guests' memory: QEMU -overcommit mem-lock=on".to_owned(),
            ],
        ),
    })
}
