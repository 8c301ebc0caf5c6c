//! The end of the log, applied to rows: while the daemon runs and when it starts, by the same code.

use super::record::RecordRef;
use crate::relay::Memory;
use crate::relay::delivery::Queue;

/// Applies one record of `segment`.
pub fn apply(memory: &mut Memory, segment: u64, record: &RecordRef<'_>) {
    match record {
        RecordRef::Known { agent, name, at_ms } => memory.known(segment, *agent, &(*name).into(), *at_ms),
        RecordRef::Session(session) => memory.session(segment, session),
        RecordRef::Gone { agent, at_ms, bye } => memory.gone(segment, *agent, *at_ms, *bye),
        RecordRef::Subscribed { agent, topic, channel } => {
            memory.subscribed(segment, *agent, &(*topic).into(), *channel);
        }
        RecordRef::Unsubscribed { agent, topic } => memory.unsubscribed(segment, *agent, &(*topic).into()),
        RecordRef::Forgotten { agent } => memory.forgotten(segment, *agent),
        // Without recipients it is history alone (imported): nobody sent it to this relay, and it is owed to nobody.
        RecordRef::Message(message) if message.recipients.is_empty() => {}
        RecordRef::Message(message) => {
            let epoch = message.recipients.iter().next().map_or(0, |to| to.sequence.epoch);
            let recipients = message.recipients.iter().map(|to| to.agent);
            memory.part(segment, message.id, message.accepted_at_ms, epoch, message.parts, recipients);
            let weight = Queue::weight(message.raw.len()) as u64;
            let expires_ms = message.expires_ms();
            for to in message.recipients.iter() {
                memory.placed(segment, &to, weight, expires_ms);
            }
        }
        RecordRef::Progress(progress) => memory.progress(segment, progress),
        RecordRef::Nobody { id, epoch, parts, at_ms } => {
            memory.part(segment, *id, *at_ms, *epoch, *parts, std::iter::empty());
        }
        RecordRef::Failed { .. } | RecordRef::Read { .. } | RecordRef::Refused { .. } => {}
    }
}
