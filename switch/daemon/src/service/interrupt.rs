//! Interrupts a thread's blocking system call.

use std::io;

use rustix::thread::Pid;

/// A signal that nothing here uses, and that is ignored by default.
const SIGNAL: libc::c_int = libc::SIGURG;

/// The signal only has to end the system call.
extern "C" fn nothing(_: libc::c_int) {}

/// Makes [`interrupt`] end system calls (EINTR) from now on. Without a handler the signal is ignored, and with
/// SA_RESTART the call would restart.
pub(crate) fn prepare() -> io::Result<()> {
    // SAFETY: all zero is a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may interrupt anything; `action` lives through the
    // call, which copies it; the old action is not asked for.
    match unsafe { libc::sigaction(SIGNAL, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends the signal to thread `id` of this process. A thread that is not in a system call is not affected.
pub(crate) fn interrupt(id: Pid) {
    let process = std::process::id().cast_signed();
    // SAFETY: tgkill has no pointers. A thread that has ended, or a number that another thread
    // of this process has by now, costs an error or one EINTR; another process is never meant.
    unsafe {
        libc::syscall(libc::SYS_tgkill, process, id.as_raw_nonzero().get(), SIGNAL);
    }
}
