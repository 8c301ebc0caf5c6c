//! `relay doctor`: looks at what the relay needs from this machine and says how to repair what is wrong.

use super::Failure;
use super::print::{self, Style};
use super::sharing::sharing;
use super::store_check;
use super::talk::{self, Reach};
use crate::daemon::paths::SOCKET_PATH_BYTES_MAX;
use crate::daemon::{cpus, lock, storage};
use crate::uring;
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use rustix::process::Resource;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

sharing! {
    [place]
    /// Check kernel, io_uring, limits, data directory, store, clock and CPUs, and print the command that repairs each.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "doctor",
        help_triggers("-h", "--help"),
        example = "relay doctor
relay doctor --json",
        note = "Changes nothing. Exits with 1 when something fails; a warning is no failure. The store is read by a process of
its own for at most 30 seconds: one that is damaged cannot take this one with it."
    )]
    pub(super) struct Doctor {
        /// file with the key of an encrypted store (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// the process of its own: looks through the whole store, however long that takes
        #[argh(switch, hidden_help)]
        check_store: bool,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug)]
pub(super) struct Check {
    name: &'static str,
    pub(super) verdict: Verdict,
    pub(super) found: String,
    /// The command or step that repairs it; empty: nothing to repair.
    pub(super) repair: String,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Ok, found: found.into(), repair: String::new() }
    }

    pub(super) fn warn(name: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Warn, found: found.into(), repair: repair.into() }
    }

    pub(super) fn fail(name: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Fail, found: found.into(), repair: repair.into() }
    }
}

pub(super) fn run(command: &Doctor) -> Result<(), Failure> {
    if command.check_store {
        return store_check::run(command.data_dir.as_deref(), command.global, command.db_key.as_deref());
    }
    let reach = Reach::of(command.data_dir.as_deref(), command.socket.as_deref(), command.global)?;
    let layout = &reach.layout;
    let contents = store_check::contents(
        command.data_dir.as_deref(),
        command.global,
        command.db_key.as_deref(),
        &layout.store_folder(),
    );
    let holder = lock::live_holder(layout);
    let status = holder.as_ref().and_then(|holder| {
        // It may have been started with a socket of its own.
        let socket = if layout.socket_chosen { command.socket.as_deref() } else { Some(&*holder.socket) };
        let reach = Reach::of(command.data_dir.as_deref(), socket, command.global).ok()?;
        talk::ask(&reach, QueryKind::Status, &json!({})).ok()
    });
    // The running relay's word before what its next start would say.
    let clock_doubt_ms = status.as_ref().and_then(|status| status["clock_doubt_ms"].as_i64());
    let clock_doubt_ms = clock_doubt_ms.unwrap_or(contents.clock_doubt_ms);
    let warning = status.as_ref().and_then(|status| status["clock_warning"].as_str());
    let mut checks = vec![
        kernel(&rustix::system::uname().release().to_string_lossy()),
        io_uring(),
        seccomp(),
        memory_lock(),
        open_files(),
        data_directory(&layout.folder),
        socket_path(layout),
        file_system(&layout.folder),
        disk_space(&layout.folder),
        store_check::permissions(&layout.store_folder()),
        contents.check,
        clock(jiff::Timestamp::now(), &layout.lock_file(), clock_doubt_ms, warning),
        processors(),
        daemon(&reach),
    ];
    checks.extend(holder.map(|_| store_check::health(status.as_ref())));
    checks.extend(store_check::leftovers(&layout.store_folder()));
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    if command.json {
        let list: Vec<_> = checks
            .iter()
            .map(|check| {
                let repair = (!check.repair.is_empty()).then_some(&check.repair);
                json!({ "check": check.name, "verdict": word(check.verdict), "found": check.found, "repair": repair })
            })
            .collect();
        print::json(&json!({ "ok": !failed, "checks": list }))?;
    } else {
        print::out(&report(&checks, Style::of_output()))?;
    }
    if failed { Err(Failure::Said) } else { Ok(()) }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
    }
}

fn report(checks: &[Check], style: Style) -> String {
    let mut text = String::new();
    for check in checks {
        let colour = match check.verdict {
            Verdict::Ok => 32,
            Verdict::Warn => 33,
            Verdict::Fail => 31,
        };
        let verdict = style.coloured(colour, &format!("{:<5}", word(check.verdict)));
        text += &format!("{verdict}{:<16}{}\n", check.name, print::clean(&check.found));
        if !check.repair.is_empty() {
            text += &format!("{:<21}{}\n", "", check.repair);
        }
    }
    text
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Multishot receive came with 6.0, multishot accept and provided-buffer rings with 5.19; older kernels get epoll.
fn kernel(release: &str) -> Check {
    match version_of(release) {
        Some(version) if version >= (6, 0) => Check::ok("kernel", format!("Linux {release}")),
        Some(_) => Check::warn(
            "kernel",
            format!("Linux {release}; multishot receive needs 6.0"),
            "nothing has to be done: the relay falls back by itself; a kernel from 6.0 on is faster",
        ),
        None => Check::warn("kernel", format!("Linux {release}; cannot read its version"), "uname -r"),
    }
}

/// Asks the driver itself: it builds a small ring, tries what it would use, and says what came of it.
fn io_uring() -> Check {
    let name = "io_uring";
    let options = uring::Options { connections_max: 4, queue_entries: 8, ..uring::Options::default() };
    let report = match uring::Driver::new(&options) {
        Ok(driver) => driver.report().clone(),
        Err(error) => return Check::fail(name, format!("no driver works, not even epoll: {error}"), "ulimit -n 65536"),
    };
    let found = match &report.fallback {
        Some(reason) => format!("{}, receives by {}: {reason}", report.backend, report.receive),
        None => format!("{}, receives by {}", report.backend, report.receive),
    };
    if report.backend == "io_uring" {
        return Check::ok(name, found);
    }
    let repair = match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default().trim() {
        "2" => "sudo sysctl kernel.io_uring_disabled=0",
        "1" => "sudo sysctl kernel.io_uring_disabled=0, or add this user to the group of kernel.io_uring_group",
        _ => "in a container: docker run --security-opt seccomp=unconfined; otherwise a kernel from 6.0 on",
    };
    Check::warn(name, found, repair)
}

fn seccomp() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map_or("", str::trim);
    match mode {
        "2" => Check::ok("seccomp", "a filter is in force (a container?); what it means for io_uring is said above"),
        "1" => Check::fail("seccomp", "strict mode: no program of this kind can run", "start it outside that sandbox"),
        _ => Check::ok("seccomp", "no filter"),
    }
}

fn amount(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), print::bytes)
}

/// Rings are charged to the memory cgroup since 5.12, and to this limit before.
fn memory_lock() -> Check {
    const ENOUGH: u64 = 8 * 1024 * 1024;
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let old = version_of(&rustix::system::uname().release().to_string_lossy()).is_some_and(|version| version < (5, 12));
    match limit.current {
        Some(current) if current < ENOUGH && old => Check::warn(
            "memlock",
            format!("{} may be locked", amount(limit.current)),
            "ulimit -l unlimited; under systemd LimitMEMLOCK=infinity",
        ),
        _ => Check::ok("memlock", format!("{} may be locked", amount(limit.current))),
    }
}

fn open_files() -> Check {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let count = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let found = format!("{} now, {} at most", count(limit.current), count(limit.maximum));
    match limit.maximum.or(Some(u64::MAX)) {
        Some(maximum) if maximum < 1024 => Check::fail(
            "open files",
            format!("{found}; each agent needs one"),
            "ulimit -n 65536; under systemd LimitNOFILE=65536",
        ),
        _ if limit.current.is_some_and(|current| current < 4096) => Check::warn(
            "open files",
            format!("{found}; each agent needs one"),
            "ulimit -n 65536; under systemd LimitNOFILE=65536",
        ),
        _ => Check::ok("open files", found),
    }
}

fn data_directory(folder: &Path) -> Check {
    let name = "data directory";
    // The nearest part of it that exists: a folder that can be made is as good as one that is there.
    let Some(existing) = folder.ancestors().find(|part| part.exists()) else {
        return Check::fail(name, format!("{} cannot be made", folder.display()), "relay up --data-dir DIRECTORY");
    };
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_err() {
        return Check::fail(
            name,
            format!("{} cannot be written", existing.display()),
            format!("sudo chown -R $(id -u) {}, or relay up --data-dir DIRECTORY", existing.display()),
        );
    }
    match std::fs::metadata(folder) {
        Err(_) => Check::ok(name, format!("{} will be made", folder.display())),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Check::warn(
            name,
            format!(
                "{} is open to other users (mode {:o}); `relay up` closes it",
                folder.display(),
                metadata.mode() & 0o777
            ),
            format!("chmod 700 {}", folder.display()),
        ),
        Ok(_) => Check::ok(name, folder.display().to_string()),
    }
}

fn socket_path(layout: &crate::daemon::paths::Layout) -> Check {
    let length = layout.socket.as_os_str().len();
    let found = format!("{} ({length} of {SOCKET_PATH_BYTES_MAX} bytes)", layout.socket.display());
    if layout.socket_moved {
        return Check::warn(
            "socket path",
            format!(
                "the data directory's path is too long for a socket, so it lies at {found}; clients of the npm package will not find it there"
            ),
            "export AGENT_RELAY_DATA_DIR=/a/shorter/path",
        );
    }
    Check::ok("socket path", found)
}

fn file_system(folder: &Path) -> Check {
    let name = "file system";
    let existing = folder.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    match lock::file_system_kind(existing) {
        Ok(Some((kind, true))) => Check::fail(
            name,
            format!("{kind}, over a network: its locks do not keep two daemons apart"),
            "export AGENT_RELAY_DATA_DIR=/a/local/directory",
        ),
        Ok(Some((kind, false))) => Check::ok(name, kind),
        Ok(None) => Check::ok(name, "of a kind not known here; not one of the usual network ones"),
        Err(error) => Check::fail(name, format!("cannot be asked: {error}"), "relay up --data-dir DIRECTORY"),
    }
}

/// A store that cannot grow makes senders wait; one that could not even commit has no room to recover in.
fn disk_space(folder: &Path) -> Check {
    const SCARCE: u64 = 1024 * 1024 * 1024;
    const TOO_LITTLE: u64 = 64 * 1024 * 1024;
    let name = "disk space";
    let existing = folder.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    let repair = "free some space, or relay up --retention with fewer days; what was accepted waits and is kept";
    match rustix::fs::statvfs(existing) {
        Err(error) => Check::fail(name, format!("cannot be asked: {error}"), "relay up --data-dir DIRECTORY"),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} free", print::bytes(free));
            match free {
                free if free < TOO_LITTLE => Check::fail(name, text, repair),
                free if free < SCARCE => Check::warn(name, text, repair),
                _ => Check::ok(name, text),
            }
        }
    }
}

/// A clock is suspect when it is before this version was written, when the store does not believe it, when it has jumped
/// under a running daemon, or when it is before the daemon's own last start.
fn clock(now: jiff::Timestamp, lock_file: &Path, doubt_ms: i64, warning: Option<&str>) -> Check {
    const WRITTEN: i64 = 1_767_225_600; // 2026-01-01
    let repair = "timedatectl set-ntp true";
    if now.as_second() < WRITTEN {
        return Check::fail("clock", format!("{now:.0} is in the past"), repair);
    }
    if doubt_ms != 0 {
        let repair =
            format!("{repair}, if it is wrong; if it is right, let the relay run for a day, and it is believed");
        return Check::warn("clock", format!("{now:.0}: {}", storage::clock_finding(doubt_ms)), repair);
    }
    if let Some(warning) = warning {
        return Check::warn("clock", format!("{now:.0}: {warning}"), repair);
    }
    let started = std::fs::metadata(lock_file).map_or(0, |metadata| metadata.mtime());
    if started > now.as_second() + 60 {
        return Check::warn("clock", format!("{now:.0} is before the relay's last start: it was set back"), repair);
    }
    Check::ok("clock", format!("{now:.0}"))
}

fn processors() -> Check {
    let allowed = cpus::allowed();
    let choice = cpus::choose(allowed.len());
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let found = format!("{} allowed; shards would take {}", allowed.len(), list(&choice.cpus));
    match choice.note {
        Some(note) => Check::warn("CPUs", format!("{found}; {note}"), "mount /sys in the container"),
        None => Check::ok("CPUs", found),
    }
}

fn daemon(reach: &Reach) -> Check {
    match lock::live_holder(&reach.layout) {
        Some(holder) => Check::ok(
            "daemon",
            format!("running since {}, pid {}, {}", holder.since, holder.pid, holder.socket.display()),
        ),
        None => Check::ok("daemon", "none running here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_numbers() {
        assert_eq!(kernel("6.18.44-fc").verdict, Verdict::Ok);
        assert_eq!(kernel("6.0").verdict, Verdict::Ok);
        assert_eq!(kernel("5.15.0-91-generic").verdict, Verdict::Warn);
        assert_eq!(kernel("odd").verdict, Verdict::Warn);
    }

    #[test]
    fn whatever_is_not_well_names_its_repair() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let check = data_directory(&open);
        assert_eq!((check.verdict, check.repair), (Verdict::Warn, format!("chmod 700 {}", open.display())));
        assert_eq!(data_directory(&directory.path().join("not/yet")).verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_that_is_doubted_has_jumped_or_was_set_back_is_said_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let now: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = std::time::SystemTime::from(now);
        file.as_file().set_modified(at).unwrap();
        let looked = |doubt_ms, warning| clock(now, file.path(), doubt_ms, warning);
        let jumped = looked(0, Some("the wall clock has jumped by 90 s since the start"));
        let mut checks =
            vec![looked(0, None), looked(30 * 86_400_000, Some("the same")), looked(-2 * 3_600_000, None), jumped];
        file.as_file().set_modified(at + std::time::Duration::from_secs(3_600)).unwrap();
        checks.push(looked(0, None));
        checks.push(clock("2025-01-01T00:00:00Z".parse().unwrap(), file.path(), 0, None));
        insta::assert_snapshot!(report(&checks, Style::plain()));
    }

    #[test]
    fn the_report_has_a_line_a_check_and_its_repair_below() {
        let checks = [Check::ok("kernel", "Linux 6.1"), Check::warn("clock", "late\u{1b}", "timedatectl set-ntp true")];
        insta::assert_snapshot!(report(&checks, Style::plain()));
    }
}
