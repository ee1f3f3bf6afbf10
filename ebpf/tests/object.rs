//! Compares the committed object with its source, and with the names in the library.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::elf::Elf;
use crosspoint_ebpf::{MAX_QUEUES, OBJECT, PROGRAM, PROGRAM_FRAGS, SOCKETS};
use libbpf_rs::{AsRawLibbpf, ObjectBuilder, OpenObject};

/// From linux/bpf.h.
const BPF_MAP_TYPE_XSKMAP: u32 = 17;

#[test]
fn committed_object_is_what_the_source_builds_to() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let rebuilt = folder.path().join("rebuilt.bpf.o");
    build(&rebuilt);
    let rebuilt = std::fs::read(&rebuilt).expect("the object that build.sh wrote");
    // Not the whole file: other compiler versions may use another layout, or other debug information, for the same
    // program. What a loader passes to the kernel is the same.
    let rebuilt = Loaded::of(&rebuilt);
    let committed = Loaded::of(OBJECT);
    assert_eq!(
        committed, rebuilt,
        "run ebpf/build.sh and commit crosspoint_xdp.bpf.o"
    );
}

#[test]
fn the_object_has_what_the_library_names() {
    let loaded = Loaded::of(OBJECT);
    let sections: Vec<_> = loaded
        .programs
        .iter()
        .map(|(name, program)| (name.as_str(), program.section.as_str()))
        .collect();
    assert_eq!(sections, [(PROGRAM, "xdp"), (PROGRAM_FRAGS, "xdp.frags")]);
    let sockets = Map {
        kind: BPF_MAP_TYPE_XSKMAP,
        key_bytes: 4,
        value_bytes: 4,
        entries: MAX_QUEUES,
        flags: 0,
    };
    assert_eq!(
        loaded.maps,
        BTreeMap::from([(SOCKETS.to_string(), sockets)])
    );
    assert_eq!(loaded.license, b"Dual BSD/GPL\0");
}

#[test]
fn the_object_is_aligned_for_parsers_that_read_it_in_place() {
    assert_eq!(OBJECT.as_ptr().addr() % 8, 0);
}

/// Builds the source as a developer does.
fn build(output: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh");
    let run = Command::new(&script)
        .arg(output)
        .output()
        .expect("cannot run build.sh");
    // The script names the package to install when a tool is missing.
    assert!(
        run.status.success(),
        "{}: {}",
        script.display(),
        String::from_utf8_lossy(&run.stderr)
    );
}

/// What a loader passes to the kernel.
#[derive(Debug, PartialEq)]
struct Loaded {
    programs: BTreeMap<String, Program>,
    maps: BTreeMap<String, Map>,
    license: Vec<u8>,
}

#[derive(Debug, PartialEq)]
struct Program {
    section: String,
    /// Raw, before the loader inserts maps.
    instructions: Vec<u8>,
    /// Relocations for the loader: offset, kind, name.
    relocations: Vec<(u64, u32, String)>,
}

#[derive(Debug, PartialEq)]
struct Map {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

impl Loaded {
    fn of(object: &[u8]) -> Self {
        let elf = Elf::parse(object);
        let open = ObjectBuilder::default()
            .open_memory(object)
            .expect("libbpf opens the object");
        Self {
            programs: programs(&open, &elf),
            maps: maps(&open),
            license: elf.section("license").to_vec(),
        }
    }
}

fn programs(open: &OpenObject, elf: &Elf<'_>) -> BTreeMap<String, Program> {
    let each = open.progs().map(|program| {
        let section = program.section().to_string_lossy().into_owned();
        // Each section holds one program, so the section's bytes are the program's.
        let instructions = elf.section(&section).to_vec();
        assert_eq!(instructions.len(), program.insn_cnt() * 8, "{section}");
        let program_name = program.name().to_string_lossy().into_owned();
        let relocations = elf.relocations(&section);
        (
            program_name,
            Program {
                section,
                instructions,
                relocations,
            },
        )
    });
    each.collect()
}

fn maps(open: &OpenObject) -> BTreeMap<String, Map> {
    let each = open.maps().map(|map| {
        let pointer = map.as_libbpf_object().as_ptr();
        // SAFETY: `pointer` is a map of `open`, which outlives this call; each getter only reads one field of it.
        let definition = unsafe {
            use libbpf_rs::libbpf_sys as sys;
            Map {
                kind: sys::bpf_map__type(pointer),
                key_bytes: sys::bpf_map__key_size(pointer),
                value_bytes: sys::bpf_map__value_size(pointer),
                entries: sys::bpf_map__max_entries(pointer),
                flags: sys::bpf_map__map_flags(pointer),
            }
        };
        (map.name().to_string_lossy().into_owned(), definition)
    });
    each.collect()
}
