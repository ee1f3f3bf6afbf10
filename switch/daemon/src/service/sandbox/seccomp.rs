//! The seccomp filters, one for each kind of thread, from their lists of system calls.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use syscalls::Sysno;

use super::{lists, refused};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The filter of workers, made before the first of them starts.
static OF_WORKERS: OnceLock<BpfProgram> = OnceLock::new();

/// Restricts this thread, and all that it starts, to the list of the control threads. Makes the filter for
/// [`confine_worker`].
pub(super) fn confine() -> Result<(), Failed> {
    let of_workers = filter(worker_rules()?, SeccompAction::Trap, SeccompAction::Allow)?;
    let _ = OF_WORKERS.set(of_workers);
    refused::install();
    apply_filter(&without_clone3()?)?;
    apply_filter(&without_processes()?)?;
    let rules = control_rules()?;
    apply_filter(&filter(rules, SeccompAction::Trap, SeccompAction::Allow)?)?;
    Ok(())
}

/// Restricts this thread to the list of workers, if [`confine`] has made their filter.
pub(super) fn confine_worker() -> Result<(), Failed> {
    match OF_WORKERS.get() {
        Some(filter) => {
            apply_filter(&without_threads()?)?;
            Ok(apply_filter(filter)?)
        }
        None => Ok(()),
    }
}

/// Restricts the helper process to what it needs. It has no log: another call fails, and so does the request.
pub(super) fn confine_helper() -> Result<(), Failed> {
    let mut rules = plain(lists::HELPER);
    restrict(&mut rules)?;
    apply_filter(&without_clone3()?)?;
    apply_filter(&without_processes()?)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = filter(rules, refused, SeccompAction::Allow)?;
    Ok(apply_filter(&filter)?)
}

fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    on_list: SeccompAction,
) -> Result<BpfProgram, Failed> {
    let filter = SeccompFilter::new(rules, otherwise, on_list, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// The C library starts threads by clone3, whose flags no filter can see. Where the kernel does not know it, it takes clone.
fn without_clone3() -> Result<BpfProgram, Failed> {
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    filter(plain(&[Sysno::clone3]), SeccompAction::Allow, unknown)
}

/// No processes, and no namespaces with them. An error without a signal, for the same reason as for workers.
fn without_processes() -> Result<BpfProgram, Failed> {
    let no_thread = one(0, SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0)?;
    let mut rules = plain(&[Sysno::fork, Sysno::vfork]);
    allow_if(&mut rules, Sysno::clone, vec![no_thread]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    filter(rules, SeccompAction::Allow, refused)
}

/// Workers start no threads. An error without a signal: the C library blocks signals meanwhile, and a signal for a refused
/// call would then end the process.
fn without_threads() -> Result<BpfProgram, Failed> {
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    filter(plain(&[Sysno::clone]), SeccompAction::Allow, refused)
}

fn plain(list: &[Sysno]) -> Rules {
    let numbers = list.iter().map(|call| i64::from(call.id()));
    numbers.map(|number| (number, Vec::new())).collect()
}

fn control_rules() -> Result<Rules, Failed> {
    let mut rules = plain(lists::CONTROL);
    restrict(&mut rules)?;
    allow_if(&mut rules, Sysno::socket, first_is_in(lists::FAMILIES)?);
    // Only to ask where pages are: pages of this process, and no list of nodes.
    let zero = |argument, len| SeccompCondition::new(argument, len, SeccompCmpOp::Eq, 0);
    let ask = vec![
        zero(0, SeccompCmpArgLen::Dword)?,
        zero(3, SeccompCmpArgLen::Qword)?,
    ];
    allow_if(&mut rules, Sysno::move_pages, vec![SeccompRule::new(ask)?]);
    // Typing into a terminal.
    let types = |request: u64| condition(1, SeccompCmpOp::Ne, request);
    let no_typing = SeccompRule::new(vec![types(libc::TIOCSTI)?, types(libc::TIOCLINUX)?])?;
    allow_if(&mut rules, Sysno::ioctl, vec![no_typing]);
    allow_if(&mut rules, Sysno::prctl, first_is_in(lists::PRCTL)?);
    Ok(rules)
}

fn worker_rules() -> Result<Rules, Failed> {
    let mut rules = plain(lists::WORKERS);
    restrict_memory(&mut rules)?;
    signal_own_threads(&mut rules)?;
    allow_if(
        &mut rules,
        Sysno::prctl,
        first_is_in(lists::PRCTL_OF_WORKERS)?,
    );
    Ok(rules)
}

/// Memory without code, and signals to this process.
fn restrict(rules: &mut Rules) -> Result<(), Failed> {
    restrict_memory(rules)?;
    signal_own_threads(rules)
}

/// Nothing that is written can be executed.
fn restrict_memory(rules: &mut Rules) -> Result<(), Failed> {
    for call in [Sysno::mmap, Sysno::mprotect] {
        let no_code = one(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
        allow_if(rules, call, vec![no_code]);
    }
    Ok(())
}

fn signal_own_threads(rules: &mut Rules) -> Result<(), Failed> {
    let own = one(0, SeccompCmpOp::Eq, std::process::id().into())?;
    allow_if(rules, Sysno::tgkill, vec![own]);
    Ok(())
}

/// Puts a call on a list if any of the rules fits its arguments.
fn allow_if(rules: &mut Rules, call: Sysno, any: Vec<SeccompRule>) {
    rules.insert(call.id().into(), any);
}

/// Rules for a call whose first argument is one of these.
fn first_is_in(values: &[libc::c_int]) -> Result<Vec<SeccompRule>, Failed> {
    let rules = values
        .iter()
        .map(|value| one(0, SeccompCmpOp::Eq, *value as u64));
    rules.collect()
}

/// A rule of one condition.
fn one(argument: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompRule, Failed> {
    Ok(SeccompRule::new(vec![condition(
        argument, compare, value,
    )?])?)
}

/// The kernel reads 32 bits of these arguments.
fn condition(argument: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Failed> {
    let len = SeccompCmpArgLen::Dword;
    Ok(SeccompCondition::new(argument, len, compare, value)?)
}
