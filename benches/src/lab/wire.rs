//! The switches' interfaces: a network namespace of this process, with two veth pairs in it. The switch has the ends `sa`
//! and `sb`; frames are sent and received at the far ends `a0` and `b0`.

use super::process;
use crate::error::BenchError;
use std::io;
use std::process::Command;

/// The switch's ends.
pub const NEAR: [&str; 2] = ["sa", "sb"];
/// The other ends.
pub const FAR: [&str; 2] = ["a0", "b0"];
/// An interface without traffic.
pub const SPARE: &str = "spare";

/// Moves the calling thread, and all that it starts from now on, into a network namespace that ends with them.
pub fn enter_namespace() -> Result<(), BenchError> {
    // SAFETY: takes flags only, and changes the calling thread's namespaces and no memory.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    if left != 0 {
        let why = io::Error::last_os_error();
        return Err(BenchError::io("a network namespace (needs root)")(why));
    }
    // /sys shows the interfaces of the namespace in which it was mounted.
    command("mount --make-rslave /")?;
    command("mount -t sysfs sysfs /sys")?;
    // Only the bench's frames are on the wires.
    let ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    let _ = std::fs::write(ipv6, "1"); // missing without IPv6
    command(&format!(
        "ip link add {SPARE} type veth peer name {SPARE}-far"
    ))?;
    command("ip link set lo up")
}

/// Creates both veth pairs with one queue, and sets them up.
pub fn lay() -> Result<(), BenchError> {
    for (near, far) in NEAR.iter().zip(FAR) {
        let _ = command(&format!("ip link del {near}")); // a bridge has been removed by then, too
        command(&format!(
            "ip link add {far} numrxqueues 1 numtxqueues 1 type veth peer name {near} numrxqueues 1 numtxqueues 1"
        ))?;
        for end in [far, near] {
            command(&format!("ip link set {end} up"))?;
        }
    }
    Ok(())
}

/// Creates a kernel bridge between the near ends, which works on `core`, or on the sender's core.
pub fn bridge(core: Option<usize>) -> Result<(), BenchError> {
    command("ip link add bench-br type bridge")?;
    let mask = core.map_or(0, |core| 1_u128 << core);
    for near in NEAR {
        take_bursts(near)?;
        let file = format!("/sys/class/net/{near}/queues/rx-0/rps_cpus");
        std::fs::write(&file, format!("{mask:x}")).map_err(BenchError::io(file))?;
        command(&format!("ip link set {near} master bench-br"))?;
    }
    command("ip link set bench-br up")
}

/// Removes the bridge.
pub fn remove_bridge() {
    let _ = command("ip link del bench-br"); // otherwise it ends with the namespace
}

/// Lets an interface without a program receive frames that a program redirects to its other end; for this it must poll.
pub fn take_bursts(interface: &str) -> Result<(), BenchError> {
    command(&format!("ethtool -K {interface} gro on"))
}

/// The number of an interface.
pub fn index(interface: &str) -> Result<u32, BenchError> {
    let file = format!("/sys/class/net/{interface}/ifindex");
    let text = std::fs::read_to_string(&file).map_err(BenchError::io(file.clone()))?;
    let index = text.trim().parse().map_err(io::Error::other);
    index.map_err(BenchError::io(file))
}

/// Runs a command that must succeed, without a shell.
pub fn command(line: &str) -> Result<(), BenchError> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    process::run(Command::new(program).args(words), line)
}
