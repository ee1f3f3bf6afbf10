//! Gets a thread out of a system call that it sleeps in.

use std::io;

use rustix::thread::Pid;

/// A signal that nothing here uses, and whose default is to be ignored.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Ending the system call is all that is wanted of the signal.
extern "C" fn nothing(_: libc::c_int) {}

/// From here on [`interrupt`] ends system calls (EINTR). Without a handler the signal is ignored,
/// and with the flag SA_RESTART the call would begin anew.
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

/// Sends the signal to thread `id` of this process. One that does not sleep takes no notice.
pub(crate) fn interrupt(id: Pid) {
    let process = std::process::id().cast_signed();
    // SAFETY: tgkill has no pointers. A thread that has ended, or a number that another thread
    // of this process has by now, costs an error or one EINTR; another process is never meant.
    unsafe {
        libc::syscall(libc::SYS_tgkill, process, id.as_raw_nonzero().get(), SIGNAL);
    }
}
