//! The keys of the export of connections.

use super::*;

keys! {
    /// Records of the connections that security groups track, for a collector of IPFIX (RFC 7011). Without `collector`: none.
    pub struct Ipfix = "Ipfix", in "ipfix." {
        /// The collector's IP address, and its UDP port if that is not 4739.
        collector: Option<SocketAddr> = texts::ipfix_collector().optional(), AtOnce;
        /// The IP address that the messages come from. Without it: that of the route to the collector.
        source: Option<IpAddr> = texts::source().optional(), AtOnce;
        /// The observation domain, by which a collector tells switches with the same address apart.
        domain: u32 = whole(0..=u32::MAX, "domain = 1").or(1), AtOnce;
        /// How often a connection that lasts is reported; "1s" to "10m". Each record has what was counted since the one before.
        active_timeout: Duration = time("1s", "10m", "60s").or_example(), AtOnce;
        /// How often the templates are sent; "1s" to "1h".
        templates: Duration = time("1s", "1h", "60s").or_example(), AtOnce;
        /// Whether connections are also reported when they begin.
        begins: bool = flag().or(false), AtOnce;
        /// The most packets in a second that are reported as denied; 0: none. Others are counted.
        denied: u32 = whole(0..=IPFIX_DENIED_MAX, "denied = 100, or 0 for none").or(100), AtOnce;
        /// The ports whose connections are reported, by names and patterns: `*` is any text, `?` any character.
        ports: Vec<String> = mirrors::patterns().or(vec!["*".to_owned()]), AtOnce;
    }
}
