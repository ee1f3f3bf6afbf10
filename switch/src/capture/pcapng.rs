//! Captures as files: pcapng (draft-ietf-opsawg-pcapng), which Wireshark, tshark and tcpdump read.
//!
//! Each port is an interface with nanosecond times. Each frame has its direction and kind of address (`epb_flags`), the
//! port's queue (`epb_queue`), a number that a frame's copies share (`epb_packetid`), and the number of frames missed since
//! the one before (`epb_dropcount`). Its verdict is written twice: in a comment, such as `verdict=dropped
//! reason=guest_ring_full port=web-1 queue=0 worker=1`, and as `epb_verdict`. The latter uses the kind that implementations
//! define ("hardware"), followed by the verdict's word or the drop reason.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};

use crosspoint_model::capture::{Begin, Direction, PortInfo, Record, Totals, Verdict};
use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, InterfaceStatisticsBlock, Linktype, OptionCode,
    PcapNGOption, SectionHeaderBlock, ToVec,
};

/// Options of an enhanced packet block.
mod epb {
    pub(super) const FLAGS: u16 = 2;
    pub(super) const DROP_COUNT: u16 = 4;
    pub(super) const PACKET_ID: u16 = 5;
    pub(super) const QUEUE: u16 = 6;
    pub(super) const VERDICT: u16 = 7;
}

/// `epb_verdict`: what follows is for the implementation to define.
const VERDICT_HARDWARE: u8 = 0;
/// The longest text of an option, bytes.
const WORDS_MAX: usize = 1024;
/// `if_tsresol`: times are in 10^-9 seconds.
const NANOSECONDS: u8 = 9;
/// Low bits of `epb_packetid`, which hold the frame's number on its worker; the bits above hold the worker's number.
const SERIAL_BITS: u32 = 48;

/// A capture that is being written.
pub struct Writer<W> {
    out: W,
    /// Interface numbers, by port.
    interfaces: HashMap<String, u32>,
    snaplen: u32,
    /// Frames missed at the time of the last written frame.
    missed: u64,
    last_ns: u64,
}

fn option(code: u16, value: &[u8]) -> PcapNGOption<'_> {
    PcapNGOption {
        code: OptionCode(code),
        len: value.len() as u16,
        value: Cow::Borrowed(value),
    }
}

fn bytes_of(block: &mut impl ToVec) -> io::Result<Vec<u8>> {
    block
        .to_vec()
        .map_err(|why| io::Error::other(format!("{why:?}")))
}

/// Cuts a text to at most [`WORDS_MAX`] bytes: the length field of an option has 16 bits.
fn words(text: &str) -> &[u8] {
    let mut ends = (0..=text.len().min(WORDS_MAX)).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or("").as_bytes()
}

impl<W: Write> Writer<W> {
    /// Begins a file with the known ports. A `filter` that is not empty is recorded in it.
    pub fn new(mut out: W, begin: &Begin, filter: &str) -> io::Result<Writer<W>> {
        let software = concat!("crosspoint ", env!("CARGO_PKG_VERSION"));
        let mut options = vec![option(OptionCode::ShbUserAppl.0, software.as_bytes())];
        let comment = format!("filter: {filter}");
        if !filter.is_empty() {
            options.push(option(OptionCode::Comment.0, words(&comment)));
        }
        let mut section = SectionHeaderBlock {
            block_type: 0,
            block_len1: 0,
            bom: 0,
            major_version: 1,
            minor_version: 0,
            section_len: -1,
            options,
            block_len2: 0,
        };
        out.write_all(&bytes_of(&mut section)?)?;
        let mut writer = Writer {
            out,
            interfaces: HashMap::new(),
            snaplen: begin.snaplen,
            missed: 0,
            last_ns: 0,
        };
        for port in &begin.ports {
            writer.interface(port)?;
        }
        Ok(writer)
    }

    /// Returns the interface of a port. A new port is described before its first frame.
    fn interface(&mut self, port: &PortInfo) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(&port.name) {
            return Ok(*number);
        }
        let number = self.interfaces.len() as u32;
        let options = vec![
            option(OptionCode::IfName.0, words(&port.name)),
            option(OptionCode::IfDescription.0, words(&port.description)),
            option(OptionCode::IfTsresol.0, &[NANOSECONDS]),
        ];
        let mut block = InterfaceDescriptionBlock {
            block_type: 0,
            block_len1: 0,
            linktype: Linktype::ETHERNET,
            reserved: 0,
            snaplen: self.snaplen,
            options,
            block_len2: 0,
            if_tsresol: NANOSECONDS,
            if_tsoffset: 0,
        };
        self.out.write_all(&bytes_of(&mut block)?)?;
        self.interfaces.insert(port.name.clone(), number);
        Ok(number)
    }

    /// Adds a frame.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let interface = self.interface(&PortInfo {
            name: record.port.clone(),
            description: "a port that was added later".to_owned(),
        })?;
        let (comment, flags) = (comment(record), flags(record).to_le_bytes());
        let dropped = record.missed.saturating_sub(self.missed).to_le_bytes();
        let id = record
            .serial
            .map(|serial| packet_id(record.worker, serial).to_le_bytes());
        let queue = u32::from(record.queue).to_le_bytes();
        let verdict = [&[VERDICT_HARDWARE], record.verdict.word().as_bytes()].concat();
        let mut options = vec![
            option(OptionCode::Comment.0, words(&comment)),
            option(epb::FLAGS, &flags),
            option(epb::DROP_COUNT, &dropped),
            option(epb::QUEUE, &queue),
            option(epb::VERDICT, &verdict),
        ];
        options.extend(id.as_ref().map(|id| option(epb::PACKET_ID, id)));
        let mut block = EnhancedPacketBlock {
            block_type: 0,
            block_len1: 0,
            if_id: interface,
            ts_high: (record.time_ns >> 32) as u32,
            ts_low: record.time_ns as u32,
            caplen: record.bytes.len() as u32,
            origlen: record.len,
            data: &record.bytes,
            options,
            block_len2: 0,
        };
        self.out.write_all(&bytes_of(&mut block)?)?;
        (self.missed, self.last_ns) = (record.missed, record.time_ns);
        Ok(())
    }

    /// Flushes the bytes written so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the file with the number of missed frames. It is not known per port, so each interface's statistics hold the
    /// total.
    pub fn finish(mut self, totals: &Totals) -> io::Result<W> {
        let drops = totals.missed.to_le_bytes();
        for number in 0..self.interfaces.len() as u32 {
            let mut block = InterfaceStatisticsBlock {
                block_type: 0,
                block_len1: 0,
                if_id: number,
                ts_high: (self.last_ns >> 32) as u32,
                ts_low: self.last_ns as u32,
                options: vec![option(OptionCode::IsbIfDrop.0, &drops)],
                block_len2: 0,
            };
            self.out.write_all(&bytes_of(&mut block)?)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A number that a frame shares with its copies, and with no other frame.
fn packet_id(worker: usize, serial: u64) -> u64 {
    (worker as u64) << SERIAL_BITS | serial & ((1 << SERIAL_BITS) - 1)
}

/// `epb_flags`: inbound or outbound, and unicast, multicast or broadcast.
fn flags(record: &Record) -> u32 {
    let direction = match record.direction {
        Direction::Received => 1,
        Direction::Sent => 2,
    };
    let reception = match record.bytes.get(..6) {
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => 3,
        Some([first, ..]) if first & 1 != 0 => 2,
        Some(_) => 1,
        None => 0,
    };
    direction | reception << 2
}

fn comment(record: &Record) -> String {
    let verdict = match &record.verdict {
        Verdict::Port(port) => format!("verdict=port to={port}"),
        Verdict::Flood => "verdict=flood".to_owned(),
        Verdict::Delivered => "verdict=delivered".to_owned(),
        Verdict::Dropped(reason) => format!("verdict=dropped reason={reason}"),
    };
    let Record {
        port,
        queue,
        worker,
        ..
    } = record;
    let mut text = format!("{verdict} port={port} queue={queue} worker={worker}");
    if let Some(offload) = &record.offload {
        if let Some((start, offset)) = offload.checksum {
            let at = u32::from(start) + u32::from(offset);
            text += &format!(" checksum_from={start} checksum_at={at}");
        }
        if offload.gso_type != 0 {
            text += &format!(
                " gso_type={} gso_size={}",
                offload.gso_type, offload.gso_size
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use crosspoint_model::capture::Offload;

    use super::*;

    fn record(port: &str, verdict: Verdict, direction: Direction) -> Record {
        Record {
            time_ns: 1_700_000_000_123_456_789,
            port: port.to_owned(),
            queue: 3,
            worker: 2,
            serial: Some(77),
            direction,
            verdict,
            len: 1500,
            offload: None,
            missed: 0,
            bytes: [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &[0; 46]].concat(),
        }
    }

    /// tshark's output for each frame, field by field.
    fn tshark(file: Vec<u8>, fields: &[&str]) -> Vec<Vec<String>> {
        let mut command = Command::new("tshark");
        command.args(["-n", "-r", "-", "-T", "fields", "-E", "separator=|"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tshark starts: apt install tshark");
        let mut input = child.stdin.take().expect("a pipe");
        let writing = std::thread::spawn(move || input.write_all(&file));
        let output = child.wait_with_output().expect("it ends");
        writing.join().expect("no panic").expect("it reads all");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        assert!(
            !complaint.contains("cut short") && !complaint.contains("damaged"),
            "{complaint}"
        );
        let lines = String::from_utf8(output.stdout).expect("text");
        let words = |line: &str| line.split('|').map(str::to_owned).collect();
        lines.lines().map(words).collect()
    }

    #[test]
    fn tshark_reads_all_that_is_said_of_frames() {
        let begin = Begin {
            ports: vec![PortInfo {
                name: "web-1".to_owned(),
                description: "vhost port, VLAN access 100".to_owned(),
            }],
            snaplen: 60,
        };
        let mut writer = Writer::new(Vec::new(), &begin, "arp or vlan").unwrap();
        let dropped = Verdict::Dropped("guest_ring_full".to_owned());
        let mut first = record("web-1", dropped, Direction::Sent);
        first.missed = 5;
        first.offload = Some(Offload {
            checksum: Some((34, 16)),
            gso_type: 1,
            gso_size: 1448,
        });
        let mut second = record(
            "a \"new\" port",
            Verdict::Port("web-1".to_owned()),
            Direction::Received,
        );
        (second.missed, second.serial) = (5, None);
        second.bytes.truncate(13);
        writer.write(&first).unwrap();
        writer.write(&second).unwrap();
        let totals = Totals {
            missed: 9,
            ..Totals::default()
        };
        let file = writer.finish(&totals).unwrap();
        let fields = [
            "frame.time_epoch",
            "frame.interface_name",
            "frame.interface_description",
            "frame.packet_flags_direction",
            "frame.drop_count",
            "frame.packet_id",
            "frame.interface_queue",
            "frame.verdict.hw",
            "frame.comment",
            "frame.len",
            "frame.cap_len",
        ];
        let mut seen = tshark(file.clone(), &fields);
        // Bytes have spaces between them in some versions.
        seen.iter_mut()
            .for_each(|words| words[7].retain(|c| c != ' '));
        let comment = "verdict=dropped reason=guest_ring_full port=web-1 queue=3 worker=2 checksum_from=34 checksum_at=50 gso_type=1 gso_size=1448";
        let id = (2_u64 << 48 | 77).to_string();
        let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            seen[0],
            [
                "1700000000.123456789",
                "web-1",
                "vhost port, VLAN access 100",
                "0x00000002",
                "5",
                &id,
                "3",
                &hex("guest_ring_full"),
                comment,
                "1500",
                "60",
            ]
        );
        assert_eq!(
            seen[1],
            [
                "1700000000.123456789",
                "a \"new\" port",
                "a port that was added later",
                "0x00000001",
                "0",
                "",
                "3",
                &hex("port"),
                "verdict=port to=web-1 port=a \"new\" port queue=3 worker=2",
                "1500",
                "13",
            ]
        );
        // Every interface's statistics hold the number missed: isb_ifdrop, of 8 bytes.
        let said = [&[5, 0, 8, 0][..], &9_u64.to_le_bytes()].concat();
        let statistics = file.windows(said.len()).filter(|bytes| *bytes == said);
        assert_eq!(statistics.count(), 2);
    }
}
