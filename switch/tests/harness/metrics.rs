//! The metrics, scraped and parsed without any library of Prometheus.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One line of the exposition.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty if there is no such label.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// One scrape.
pub struct Metrics {
    pub text: String,
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Scrapes `http://ADDRESS/metrics`; `None` if there is no answer.
    pub fn scrape(address: SocketAddr) -> Option<Self> {
        let (status, body) = get(address, "/metrics")?;
        assert_eq!(status, 200, "{body}");
        Some(Self::of_text(&body))
    }

    /// Metrics that were obtained in another way.
    pub fn of_text(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            samples: text.lines().filter_map(parse).collect(),
        }
    }

    /// The samples of one metric.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name)
    }

    /// Sum of the samples of `name` that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let fits = |sample: &&Sample| {
            labels
                .iter()
                .all(|(key, value)| sample.label(key) == *value)
        };
        self.of(name)
            .filter(fits)
            .map(|sample| sample.value as u64)
            .sum()
    }
}

/// `GET http://ADDRESS/PATH`: the status and the body; `None` if there is no answer.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    assert!(
        !head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked"),
        "HTTP/1.0 knows no chunks: {head}"
    );
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

fn parse(line: &str) -> Option<Sample> {
    if line.starts_with('#') || line.is_empty() {
        return None;
    }
    let (series, value) = line
        .rsplit_once(' ')
        .unwrap_or_else(|| panic!("no metric: {line:?}"));
    let value = value
        .parse()
        .unwrap_or_else(|_| panic!("no number: {line:?}"));
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.trim_end_matches('}');
    let pair = |text: &str| {
        let (key, value) = text
            .split_once('=')
            .unwrap_or_else(|| panic!("no label: {line:?}"));
        (key.to_owned(), value.trim_matches('"').to_owned())
    };
    // The labels of the tests hold no commas.
    let labels = labels
        .split(',')
        .filter(|text| !text.is_empty())
        .map(pair)
        .collect();
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}
