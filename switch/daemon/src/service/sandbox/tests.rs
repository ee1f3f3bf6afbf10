//! Threads of a test are confined, and then do what they may not. A filter belongs to a thread, so other tests are not
//! affected.

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::thread;

use crosspoint_model::health::Health;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::*;

/// Runs `job` on a thread of this name, confined as a worker is. Returns the thread's number.
fn as_worker<T: Send + 'static>(name: &str, job: impl FnOnce() -> T + Send + 'static) -> (i32, T) {
    let thread = thread::Builder::new().name(name.to_owned());
    let confined = move || {
        rustix::thread::set_no_new_privs(true).expect("any thread may");
        seccomp::confine().expect("the kernel has seccomp");
        seccomp::confine_worker().expect("the kernel has seccomp");
        (rustix::thread::gettid().as_raw_nonzero().get(), job())
    };
    thread
        .spawn(confined)
        .expect("a thread")
        .join()
        .expect("no panic")
}

fn code<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|why| why.raw_os_error())
}

/// Maps memory that may be written and executed.
fn make_code() -> Option<Errno> {
    let (prot, flags) = (ProtFlags::WRITE | ProtFlags::EXEC, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let made = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, prot, flags) };
    made.err()
}

/// The lines that `log` writes.
fn logged() -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || to.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, log);
    let bytes = lines.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("text")
}

/// One test, since the counts are those of the process.
#[test]
fn a_call_that_is_not_on_a_threads_list_fails_and_is_logged_counted_and_warned_of() {
    let (id, [socket, file, started]) = as_worker("worker-7", || {
        // What workers do.
        thread::yield_now();
        thread::sleep(Duration::from_millis(1));
        // No signal tells of the thread: the C library blocks them meanwhile.
        [
            code(UdpSocket::bind("127.0.0.1:0")),
            code(std::fs::File::open("/etc/passwd")),
            code(thread::Builder::new().spawn(|| ())),
        ]
    });
    assert_eq!([socket, file, started], [Some(libc::EPERM); 3]);
    assert_eq!(counts(), [2, 0]);
    let text = logged();
    for call in ["socket (41)", "openat (257)"] {
        let line = format!(
            "ERROR crosspoint_daemon::service::sandbox::refused: the sandbox refused a system call, 1 time(s): {call} of thread worker-7 ({id}); it failed with EPERM."
        );
        assert!(text.contains(&line), "{text}");
    }
    assert_eq!(logged(), "", "once for each call");
    let health = warn(Health::default());
    let warning = format!(
        "warning: the sandbox has refused 2 system call(s) since the start: socket (41) of thread worker-7 ({id}), openat (257) of thread worker-7 ({id})"
    );
    assert_eq!(health.warnings, [warning]);
    let text = crate::metrics::text_of_process();
    assert!(
        text.contains("crosspoint_system_calls_refused_total{threads=\"workers\"} 2\n"),
        "{text}"
    );
    // The same by a thread that controls: it opens files and starts threads, but no processes, and makes no code.
    let thread = thread::Builder::new().name("port-3".to_owned());
    let controls = thread.spawn(|| {
        seccomp::confine().expect("the kernel has seccomp");
        std::fs::File::open("/etc/passwd").expect("on the list");
        thread::spawn(|| ()).join().expect("on the list");
        (code(Command::new("/bin/true").spawn()), make_code())
    });
    let (spawned, made) = controls.expect("a thread").join().expect("no panic");
    assert_eq!(spawned, Some(libc::EPERM));
    assert_eq!(made, Some(Errno::PERM));
    assert_eq!(counts(), [2, 1]);
    assert!(
        logged().contains("mmap (9) of thread port-3 ("),
        "once more"
    );
}
