//! Looks at everything in the store and says what is damaged. Changes nothing. Pages that are not what they should be can
//! end a process, whatever it checks: `relay doctor` runs this in a process of its own.

use super::error::{Damage, OpenError, Part, StoreError};
use super::index::{Group, GroupLimits, Tail};
use super::record::RecordRef;
use super::snapshot::{Snapshot, log_number};
use super::{Options, Store, seal};
use crate::base::{AgentId, Sequence};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

/// Damages that a report names; it counts them all.
const DAMAGES_MAX: usize = 100;
/// Segments that are looked at within one read transaction.
const SEGMENTS_AT_ONCE: u64 = 64;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The first and the last segment that are kept.
    pub segments: (u64, u64),
    /// Every change up to and including this segment is in the rows.
    pub applied: u64,
    /// Records in the log.
    pub records: u64,
    /// Messages among them.
    pub messages: u64,
    /// Bytes of the records.
    pub bytes: u64,
    /// Rows of agents.
    pub agents: u64,
    /// Groups of the index.
    pub groups: u64,
    /// API keys, revoked ones too.
    pub keys: u64,
    /// Events of the audit trail.
    pub events: u64,
    /// Length of LMDB's file, and bytes of it that are in use.
    pub file_bytes: (u64, u64),
    /// Bytes of the journal on the disk.
    pub journal_bytes: u64,
    /// What is damaged: the first hundred.
    pub damages: Vec<Damage>,
    /// How much is damaged.
    pub damage_count: u64,
}

impl Report {
    fn damaged(&mut self, part: Part, key: u64, what: &'static str) {
        self.damage_count += 1;
        if self.damages.len() < DAMAGES_MAX {
            self.damages.push(Damage { part, key, what });
        }
    }

    /// Takes note of damage; gives any other error back.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Corrupt(Damage { part, key, what })) => {
                self.damaged(part, key, what);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens the store for reading and looks at everything; `progress` hears how many segments were looked at.
pub fn check(options: &Options, progress: impl FnMut(u64)) -> Result<Report, OpenError> {
    let store = Store::open(options.clone().reading())?;
    Ok(store.check(progress)?)
}

impl Store {
    /// Looks at everything.
    pub fn check(&self, mut progress: impl FnMut(u64)) -> Result<Report, StoreError> {
        let mut report = Report {
            encrypted: self.is_encrypted(),
            file_bytes: self.file_bytes()?,
            journal_bytes: self.journal_bytes()?,
            ..Report::default()
        };
        let snapshot = self.snapshot()?;
        report.applied = snapshot.applied()?;
        check_rows(&snapshot, &mut report)?;
        check_groups(&snapshot, &mut report)?;
        check_control(&snapshot, &mut report)?;
        report.segments = (snapshot.first_segment()?, snapshot.last_segment()?);
        drop(snapshot);
        let (first, last) = report.segments;
        if report.applied > last {
            report.damaged(Part::Meta, 0, "`applied` is behind the end of the log");
        }
        if first > report.applied + 1 {
            report.damaged(Part::Meta, 0, "segments that are not in the rows are missing");
        }
        let mut sequences: HashMap<AgentId, Sequence> = HashMap::new();
        let mut next = first;
        while next <= last {
            let snapshot = self.snapshot()?;
            // What was swept meanwhile is no damage.
            next = next.max(snapshot.first_segment()?);
            let until = last.min(next + (SEGMENTS_AT_ONCE - 1));
            for number in next..=until {
                check_segment(&snapshot, number, &mut sequences, &mut report)?;
            }
            if next <= until {
                progress(until);
            }
            next = until + 1;
        }
        if report.damage_count == 0 {
            self.check_groups_against_the_log(&mut report)?;
        }
        Ok(report)
    }
}

impl Store {
    /// Makes each group of the index again from the log, and compares. Only where the log itself is whole: what was damaged
    /// when a group was made is not in it.
    fn check_groups_against_the_log(&self, report: &mut Report) -> Result<(), StoreError> {
        let mut next = 0;
        loop {
            let snapshot = self.snapshot()?;
            let found = match snapshot.group(next)? {
                Some(value) => Some((next, value)),
                None => snapshot.group_behind(next)?,
            };
            let Some((first, value)) = found else { return Ok(()) };
            next = first + 1;
            if first < snapshot.first_segment()? {
                // Parts of it were swept away; the rest is verified by whoever follows one of its places.
                continue;
            }
            let Some(group) = report.note(Group::check(first, value))? else { continue };
            let mut made = Tail::new(first, self.terms(), GroupLimits::default());
            for number in first..=group.last_segment() {
                match snapshot.segment(number)? {
                    Some(mut view) => made.add_segment(&mut view)?,
                    None => made.begin(number, 0),
                }
            }
            if made.close() != value {
                report.damaged(Part::Index, first, "it is not what the log says");
            }
        }
    }
}

/// Whether every record of a segment can be read, and every body is what was accepted.
pub(super) fn segment_is_whole(snapshot: &Snapshot<'_>, number: u64) -> Result<(), StoreError> {
    let corrupt = |what| StoreError::corrupt(Part::Log, number, what);
    let mut view = snapshot.segment(number)?.ok_or_else(|| corrupt("it is missing"))?;
    let mut whole = true;
    view.records(|_, record| {
        if let RecordRef::Message(message) = record {
            whole &= crc32fast::hash(message.raw) == message.checksum;
        }
        ControlFlow::Continue(())
    })?;
    if whole { Ok(()) } else { Err(corrupt("the checksum of a message does not fit")) }
}

fn check_segment(
    snapshot: &Snapshot<'_>,
    number: u64,
    sequences: &mut HashMap<AgentId, Sequence>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let Some(found) = report.note(snapshot.segment(number))? else { return Ok(()) };
    let Some(mut view) = found else {
        report.damaged(Part::Log, number, "it is missing");
        return Ok(());
    };
    let header = *view.header();
    let mut messages = 0;
    let mut wrong = None;
    let walked = view.records(|_, record| {
        if record.at_ms().is_some_and(|at_ms| at_ms < header.first_ms || at_ms > header.last_ms) {
            wrong = Some("a record is older or younger than its header says");
        }
        if let RecordRef::Message(message) = record {
            messages += 1;
            if crc32fast::hash(message.raw) != message.checksum {
                wrong = Some("the checksum of a message does not fit");
            }
            for to in message.recipients.iter() {
                let last = sequences.entry(to.agent).or_default();
                if to.sequence <= *last {
                    wrong = Some("an agent's messages are not in order");
                }
                *last = to.sequence;
            }
        }
        ControlFlow::Continue(())
    });
    if report.note(walked)?.is_some() {
        if messages != header.messages {
            wrong = Some("it does not have as many messages as its header says");
        }
        report.records += u64::from(header.records);
        report.messages += u64::from(messages);
        report.bytes += u64::from(header.bytes);
    }
    if let Some(what) = wrong {
        report.damaged(Part::Log, number, what);
    }
    Ok(())
}

/// Rows, and that no labels are left of agents without one.
fn check_rows(snapshot: &Snapshot<'_>, report: &mut Report) -> Result<(), StoreError> {
    let failed = |error| snapshot.store().failed(error);
    let mut known = HashSet::new();
    for item in snapshot.databases().agents.iter(snapshot.transaction()).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        known.insert(seal::number_of(key));
        let row = snapshot.row_of(key, value, &mut Vec::new());
        if let Some(row) = report.note(row)? {
            report.agents += 1;
            if row.as_of > snapshot.last_segment()? {
                report.damaged(Part::Agents, seal::number_of(key), "it is newer than the log");
            }
        }
    }
    for item in snapshot.databases().labels.iter(snapshot.transaction()).map_err(failed)? {
        let (key, _) = item.map_err(failed)?;
        if key.len() != 9 || !known.contains(&seal::number_of(key)) {
            report.damaged(Part::Labels, seal::number_of(key), "it belongs to no row");
        }
    }
    Ok(())
}

/// Keys, secrets and events: that each is what was written.
fn check_control(snapshot: &Snapshot<'_>, report: &mut Report) -> Result<(), StoreError> {
    let Some(control) = snapshot.databases().control else { return Ok(()) };
    let failed = |error| snapshot.store().failed(error);
    let mut buffer = Vec::new();
    for item in control.keys.iter(snapshot.transaction()).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        if report.note(snapshot.key_of(key, value, &mut buffer))?.is_some() {
            report.keys += 1;
        }
    }
    for item in control.secrets.iter(snapshot.transaction()).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        report.note(snapshot.check_secret(key, value))?;
    }
    for item in control.events.iter(snapshot.transaction()).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        if report.note(snapshot.event_of(key, value, &mut buffer))?.is_some() {
            report.events += 1;
        }
    }
    Ok(())
}

/// Groups of the index: that each is what was written.
fn check_groups(snapshot: &Snapshot<'_>, report: &mut Report) -> Result<(), StoreError> {
    let failed = |error| snapshot.store().failed(error);
    for item in snapshot.databases().index.iter(snapshot.transaction()).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        // A group holds keyed hashes and places alone: it is never sealed, and has checksums of its own.
        let group = log_number(key).and_then(|number| Group::check(number, value)?.check_body());
        if report.note(group)?.is_some() {
            report.groups += 1;
        }
    }
    Ok(())
}
