//! What agents say to have read, looked up: whether it was for them, and whether that is known already. Changes nothing.

use crate::base::AgentId;
use crate::relay::Reading;
use crate::relay::readings::{LookedUp, ReadingFound};
use crate::store::Store;
use crate::store::find::{self, Outcome};
use crate::store::index::Tail;
use parking_lot::RwLock;
use std::collections::HashMap;

/// Answers each of them once, however often it is among them. `between` is called between two messages, and says whether to
/// go on; what is not looked up then is not answered.
pub(super) fn look_up(
    store: &Store,
    tail: &RwLock<Tail>,
    mut readings: Vec<Reading>,
    mut between: impl FnMut() -> bool,
) -> Vec<LookedUp> {
    readings.sort_unstable();
    readings.dedup();
    let mut answers = Vec::with_capacity(readings.len());
    for same in readings.chunk_by(|one, other| one.id == other.id) {
        if !between() {
            break;
        }
        let id = same[0].id;
        // Ascending, since they are sorted by message and then by recipient.
        let agents: Vec<AgentId> = same.iter().map(|reading| reading.recipient).collect();
        // What cannot be read cannot be believed either; what is wrong with the store, the keeper says.
        let mut found = find::addressed(store, tail, id, &agents).unwrap_or_default();
        let recipients = found.as_mut().map(|found| std::mem::take(&mut found.recipients)).unwrap_or_default();
        let recipients: HashMap<AgentId, _> = recipients.into_iter().map(|one| (one.to.agent, one)).collect();
        for reading in same {
            let found = match (&found, recipients.get(&reading.recipient)) {
                (Some(message), Some(recipient)) => match recipient.outcome {
                    Some(Outcome::Read) => ReadingFound::Known,
                    Some(Outcome::Failed(_)) => ReadingFound::Failed,
                    None => ReadingFound::News {
                        sequence: recipient.to.sequence,
                        wants: message.wants,
                        from: message.from.clone(),
                    },
                },
                _ => ReadingFound::Nothing,
            };
            answers.push(LookedUp { reading: *reading, found });
        }
    }
    answers
}
