//! The SIGSYS handler: a system call that is on no list of its thread fails with EPERM, and is recorded. The main thread logs
//! it.

use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crosspoint_model::health::Health;
use syscalls::Sysno;

/// The system calls that are told apart. The last entry counts all calls with a larger number.
const CALLS: usize = 512;
/// Bytes of a thread's name.
const NAME_BYTES: usize = 16;

/// Refused calls of one number.
struct Calls {
    count: AtomicU64,
    /// The thread that made the last one, and its name, in two halves.
    thread: AtomicI32,
    name: [AtomicU64; 2],
}

static REFUSED: [Calls; CALLS] = [const {
    Calls {
        count: AtomicU64::new(0),
        thread: AtomicI32::new(0),
        name: [const { AtomicU64::new(0) }; 2],
    }
}; CALLS];
/// Refused calls of workers, and of all other threads.
static OF_WORKERS: AtomicU64 = AtomicU64::new(0);
static OF_OTHERS: AtomicU64 = AtomicU64::new(0);
/// The counts that have been logged.
static LOGGED: Mutex<[u64; CALLS]> = Mutex::new([0; CALLS]);

/// Installs the handler for the process.
pub(super) fn install() {
    // SAFETY: a zeroed sigaction is valid (no flags, empty mask, default action), and the handler set below does only
    // what is safe in a signal handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
    }
}

/// Signal handler. Async-signal-safe: loads, stores and two system calls that every list allows.
extern "C" fn on_sigsys(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes the interrupted thread's context to a handler with SA_SIGINFO; nothing else refers to it.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // The kernel has put the call's number back into the register where its result is expected (SECCOMP_RET_TRAP).
    let result = &mut registers[libc::REG_RAX as usize];
    record(usize::try_from(*result).unwrap_or(usize::MAX));
    *result = -i64::from(libc::EPERM);
}

fn record(number: usize) {
    let mut name = [0; NAME_BYTES];
    // SAFETY: PR_GET_NAME writes NAME_BYTES bytes at most; gettid has no arguments. Neither fails, so errno stays as it is.
    let thread = unsafe {
        libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
        libc::gettid()
    };
    let calls = &REFUSED[number.min(CALLS - 1)];
    calls.thread.store(thread, Ordering::Relaxed);
    let (halves, _) = name.as_chunks::<8>();
    for (to, half) in calls.name.iter().zip(halves) {
        to.store(u64::from_ne_bytes(*half), Ordering::Relaxed);
    }
    let of_kind = match name.starts_with(b"worker-") {
        true => &OF_WORKERS,
        false => &OF_OTHERS,
    };
    of_kind.fetch_add(1, Ordering::Relaxed);
    calls.count.fetch_add(1, Ordering::Release);
}

/// Number of refused system calls of workers, and of all other threads.
pub(crate) fn counts() -> [u64; 2] {
    [&OF_WORKERS, &OF_OTHERS].map(|count| count.load(Ordering::Relaxed))
}

/// Refused system calls of one number.
struct Refusal {
    number: usize,
    count: u64,
    thread: i32,
    name: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            number,
            thread,
            name,
            ..
        } = self;
        let call = match Sysno::new(*number) {
            Some(call) => format!("{} ({number})", call.name()),
            None => format!("number {number}"),
        };
        write!(f, "{call} of thread {name} ({thread})")
    }
}

fn refusals() -> impl Iterator<Item = Refusal> {
    let all = REFUSED.iter().enumerate();
    all.filter_map(|(number, calls)| {
        let count = calls.count.load(Ordering::Acquire);
        (count > 0).then(|| {
            let halves = calls.name.each_ref();
            let bytes = halves.map(|half| half.load(Ordering::Relaxed).to_ne_bytes());
            let name = String::from_utf8_lossy(bytes.as_flattened()).into_owned();
            Refusal {
                number,
                count,
                thread: calls.thread.load(Ordering::Relaxed),
                name: name.trim_end_matches('\0').to_owned(),
            }
        })
    })
}

/// Logs the calls that were refused since the last call of this function.
pub(crate) fn log() {
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    for refusal in refusals() {
        let before = &mut logged[refusal.number];
        let new = refusal.count - *before;
        if new > 0 {
            *before = refusal.count;
            tracing::error!(
                "the sandbox refused a system call, {new} time(s): {refusal}; it failed with EPERM. No thread should make a call that is not on its list: please report it. `[sandbox] seccomp = false` allows all calls, after a restart"
            );
        }
    }
}

/// Adds a warning if system calls were refused since the start.
pub(crate) fn warn(mut health: Health) -> Health {
    let all: u64 = counts().iter().sum();
    if all > 0 {
        let named: Vec<String> = refusals().map(|refusal| refusal.to_string()).collect();
        let named = named.join(", ");
        health.warnings.push(format!(
            "warning: the sandbox has refused {all} system call(s) since the start: {named}"
        ));
    }
    health
}
