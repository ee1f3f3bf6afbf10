//! The part of ELF that is needed to read an eBPF object: sections by name, and their relocations.

use std::collections::BTreeMap;

const FILE_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const RELOCATION_BYTES: usize = 16;

/// A little-endian 64-bit object file.
pub struct Elf<'f> {
    sections: BTreeMap<String, &'f [u8]>,
}

impl<'f> Elf<'f> {
    pub fn parse(file: &'f [u8]) -> Self {
        assert_eq!(&file[..6], b"\x7fELF\x02\x01", "64-bit little-endian ELF");
        let table = u64_at(file, 40) as usize;
        let [entry_bytes, count, names_at] = [58, 60, 62].map(|at| usize::from(u16_at(file, at)));
        assert_eq!(
            entry_bytes, FILE_HEADER_BYTES,
            "section headers are this wide too"
        );
        let header = |index: usize| &file[table + index * entry_bytes..][..entry_bytes];
        let bytes = |header: &[u8]| {
            let [offset, length] = [24, 32].map(|at| u64_at(header, at) as usize);
            &file[offset..][..length]
        };
        let names = bytes(header(names_at));
        // The first header is not a section.
        let sections = (1..count).map(|index| {
            let header = header(index);
            (string_at(names, u32_at(header, 0)), bytes(header))
        });
        Self {
            sections: sections.collect(),
        }
    }

    /// Returns the bytes of a section, which must exist.
    pub fn section(&self, name: &str) -> &'f [u8] {
        self.sections
            .get(name)
            .unwrap_or_else(|| panic!("the object has no section {name}"))
    }

    /// Returns the relocations of a section: offset, kind, name of the symbol.
    pub fn relocations(&self, section: &str) -> Vec<(u64, u32, String)> {
        let symbols = self.section(".symtab");
        let names = self.section(".strtab");
        let entries = self
            .section(&format!(".rel{section}"))
            .chunks_exact(RELOCATION_BYTES);
        let each = entries.map(|entry| {
            let [kind, symbol] = [8, 12].map(|at| u32_at(entry, at));
            let name = string_at(names, u32_at(symbols, symbol as usize * SYMBOL_BYTES));
            (u64_at(entry, 0), kind, name)
        });
        each.collect()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Returns the NUL-terminated string at an offset.
fn string_at(bytes: &[u8], at: u32) -> String {
    let rest = &bytes[at as usize..];
    let end = rest.iter().position(|byte| *byte == 0).expect("a NUL");
    String::from_utf8_lossy(&rest[..end]).into_owned()
}
