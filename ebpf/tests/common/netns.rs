//! A network namespace without a name: it ends with the test's thread, however that ends.

use std::io::Error;
use std::process::Command;

/// Moves this thread into a new network namespace. Commands it starts run there too.
pub fn enter_new() {
    // SAFETY: geteuid takes nothing and always succeeds.
    let euid = unsafe { libc::geteuid() };
    assert_eq!(
        euid, 0,
        "this test loads eBPF and makes network interfaces: run it as root (sudo -E cargo nextest run -p crosspoint-ebpf)"
    );
    // SAFETY: unshare takes flags only; CLONE_NEWNET changes the calling thread's namespace and no memory.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "a new network namespace: {}", Error::last_os_error());
    // No router solicitations and the like: only the tests send frames on these wires. The file is absent if the kernel
    // has no IPv6; then nothing needs to be turned off.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
}

/// Runs `ip` with these words, which must succeed.
pub fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("cannot run ip: apt install iproute2");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes the veth pair `up0` - `peer0`, both up, with these numbers of queues, and returns the index of `up0`.
pub fn veth(rx_queues: u32, peer_tx_queues: u32) -> u32 {
    ip(&format!(
        "link add up0 numrxqueues {rx_queues} numtxqueues 1 type veth \
         peer name peer0 numrxqueues 1 numtxqueues {peer_tx_queues}"
    ));
    ip("link set up0 up");
    ip("link set peer0 up");
    ifindex(c"up0")
}

/// The index of an interface in this namespace.
pub fn ifindex(name: &std::ffi::CStr) -> u32 {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?}: {}", Error::last_os_error());
    index
}
