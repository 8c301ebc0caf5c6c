//! What the kernel says about a process: its CPU time in nanoseconds, its memory. And where threads run.
#![forbid(unsafe_code)]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// CPU nanoseconds of each thread of `pid` (schedstat: time on the CPU, user and system). Threads that have ended are
/// missing; no server here ends threads while it is measured.
pub fn cpu_by_thread(pid: u32) -> BTreeMap<u32, u64> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    let mut times = BTreeMap::new();
    for task in tasks.flatten() {
        let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        if let Some(nanoseconds) = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok()) {
            times.insert(thread, nanoseconds);
        }
    }
    times
}

/// The name of a thread, as it called itself; empty when it has ended.
pub fn thread_name(pid: u32, thread: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).unwrap_or_default().trim().to_owned()
}

/// CPU nanoseconds of `pid`, all threads.
pub fn cpu(pid: u32) -> u64 {
    cpu_by_thread(pid).values().sum()
}

/// Resident bytes of `pid`; kernel memory of its sockets is not in it.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// Whether `pid` still runs (a child that has ended and waits for its parent does not).
pub fn is_alive(pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Pins the calling thread, and what it starts from now on, to these cores.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Does `work` pinned to these cores: a child that it starts runs there as well.
pub fn on_cores<R>(wanted: &[usize], work: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    let all = cores()?;
    pin(wanted)?;
    let done = work();
    pin(&all)?;
    done
}

/// The cores the calling thread may use.
pub fn cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// As many descriptors as the hard limit allows: ten thousand agents need as many.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}
