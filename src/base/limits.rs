//! Every bound of the relay in one place, with its reason; derived ones are checked against each other at build time.

use super::time::Mono;

/// A whole frame, header included, in either dialect. npm clients break on anything larger.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// An agent's name.
pub const NAME_BYTES_MAX: usize = 64;
/// A topic's name; `dm:a:b` holds two agents' names.
pub const TOPIC_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 4;
/// A sender's own textual id for a message (JSON `id`). UUIDs have 36; nobody needs more than this.
pub const LABEL_BYTES_MAX: usize = 256;
/// Text fields of HELLO beside the name (cli, program, model, task, working directory), each.
pub const HELLO_TEXT_BYTES_MAX: usize = 1024;

/// Connections of one shard. The descriptor limit is usually lower; `doctor` shows it.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Connections of one shard that have not said HELLO yet; further ones are closed at once.
pub const HALF_OPEN_MAX: usize = 1024;
/// From accept to HELLO.
pub const HELLO_DEADLINE: u64 = Mono::ms(10_000);
/// Bytes a connection may send before its HELLO is complete: a HELLO with full text fields, and little more.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// Agents a daemon knows at once (connected, or owed, or seen within the retention time).
pub const KNOWN_AGENTS_MAX: usize = 100_000;
/// Subscriptions of one agent.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Topics of one shard.
pub const TOPICS_MAX: usize = 65_536;

/// Messages sent to one agent and not yet acknowledged, unless its HELLO asks for fewer.
/// Sixteen times the acknowledgement stride, so that a client that acknowledges as documented never stalls.
pub const IN_FLIGHT_MAX: u32 = 1024;
/// The same in bytes: one slow reader's share of a shard's send buffers.
pub const IN_FLIGHT_BYTES_MAX: usize = 512 * 1024;
/// Bytes waiting in memory for one recipient behind what is in flight; beyond it senders hear BUSY.
pub const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Messages waiting for one recipient, in flight included.
pub const WAITING_MESSAGES_MAX: usize = 100_000;
/// Bytes waiting in memory for all recipients of one shard: 256 slow readers at their bound.
pub const SHARD_WAITING_BYTES_MAX: usize = 256 * WAITING_BYTES_MAX;
/// What one waiting message is counted as on top of its body: its entry and its share of a chunk's end.
pub const WAITING_OVERHEAD_BYTES: usize = 128;

/// A client acknowledges at the latest after this many messages …
pub const ACK_STRIDE: u64 = 64;
/// … or this long after the first unacknowledged one.
pub const ACK_DELAY: u64 = Mono::ms(10);
/// An unacknowledged message is sent again after this long.
pub const RETRY_AFTER: u64 = Mono::ms(5_000);
/// How often a message is sent before it rests.
pub const ATTEMPTS_MAX: u8 = 5;
/// How long owed messages are kept when nothing else is said: 7 days.
pub const RETENTION: u64 = Mono::ms(7 * 24 * 3_600_000);

/// How long a SEND to an unknown name waits for that name's HELLO.
pub const GRACE: u64 = Mono::ms(2_000);
/// How many SENDs of one sender may wait so.
pub const GRACE_PER_SENDER_MAX: usize = 64;
/// How many SENDs of one shard may wait so.
pub const GRACE_MAX: usize = 4096;

/// A silent peer is asked for a sign of life after this long …
pub const PING_AFTER: u64 = Mono::ms(10_000);
/// … and given up after this long.
pub const DEAD_AFTER: u64 = Mono::ms(30_000);
/// What WELCOME tells clients about it, in milliseconds.
pub const HEARTBEAT_MS: u32 = 5_000;
/// A holder of a name that has been silent this long may be replaced without its token.
pub const TAKE_OVER_SILENCE: u64 = Mono::ms(15_000);
/// Two take-overs of one name within this long: the holder keeps it.
pub const TAKE_OVER_DAMPER: u64 = Mono::ms(10_000);
/// A resume token lives this long after its session ended.
pub const RESUME_TTL: u64 = Mono::ms(24 * 3_600_000);
/// `*` and topics reach agents lost without BYE for this long.
pub const LOST_REACHABLE: u64 = Mono::ms(24 * 3_600_000);

/// Textual ids remembered per JSON sender, so that the same SEND twice is one message.
pub const LABELS_REMEMBERED: usize = 4096;
/// Numbers of native messages, up to the highest, of which each sender's row says whether they were accepted: what was in
/// flight when the daemon ended may be sent again, anything older was answered long ago.
pub const NUMBERS_REMEMBERED: u64 = 4096;
/// Runs of messages acknowledged out of order that are told to the writer, per recipient.
pub const SETTLED_RUNS_MAX: usize = 1024;
/// Messages owed to one agent, in memory and in the store, when nothing else is said.
pub const OWED_MESSAGES_MAX: usize = 100_000;
/// The most of them that an operator may allow.
pub const OWED_MESSAGES_ALLOWED_MAX: usize = 10_000_000;
/// Bytes owed to one agent, in memory and in the store, when nothing else is said.
pub const OWED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The most of them that an operator may allow: a quarter of the store's first map.
pub const OWED_BYTES_ALLOWED_MAX: usize = 16 * 1024 * 1024 * 1024;
/// Owed messages fetched from the store at once …
pub const FETCH_MESSAGES_MAX: u32 = 1024;
/// … and their bytes.
pub const FETCH_BYTES_MAX: u32 = 512 * 1024;
/// Refused numbers remembered per native sender, so that a refused message may be sent again under its number.
pub const REFUSED_REMEMBERED: usize = NUMBERS_REMEMBERED as usize;

/// Frames beside messages and acknowledgements (subscriptions, questions, pings, receipts of reading, SENDs that are refused
/// or were sent before) that one connection may say per second. More than a program that marks each message as read ever
/// says, and at one or two microseconds each some hundredths of a shard's time.
pub const CONTROL_PER_SECOND: u32 = 10_000;
/// As many may be saved up: after a crash a client sends all again that it has not heard of.
pub const CONTROL_BURST: u32 = 20_000;

/// Messages said to be read that one shard has still to look up in the store; one agent has half of what is left at most.
/// What is more is not believed.
pub const READINGS_WAITING_MAX: usize = 4096;
/// How many of them are looked up for one question.
pub const READINGS_AT_ONCE_MAX: usize = 1024;
/// Of those that were taken, so many are remembered per shard, so that repeating them costs no look: 32 KiB.
pub const READINGS_KNOWN: usize = 1024;
/// One that turns out not to be so costs its connection this many frames more: it was looked for in all that is kept.
pub const READINGS_COST: usize = 15;

/// Mail from one shard to another that has not been taken yet.
pub const LANE_MAILS_MAX: usize = 8192;
/// Batches of records on their way to the writer, per shard.
pub const WRITER_BATCHES_MAX: usize = 64;
/// Records in one batch.
pub const WRITER_BATCH_RECORDS_MAX: usize = 4096;
/// Bytes in one batch.
pub const WRITER_BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Batches that may lie before the writer without another one being cut. Many: whatever lies there when a commit ends is
/// in the next one, and what waits at a shard is not. Fewer than the queue holds: a turn's few records must not fill it.
pub const WRITER_AHEAD: usize = WRITER_BATCHES_MAX * 3 / 4;
/// What a record counts as in what waits for the writer, beside its bytes: so a batch that is full by either bound counts as
/// one of full length, and none that a shard is still filling counts as more than two.
pub const WRITER_RECORD_COST: u64 = (WRITER_BATCH_BYTES_MAX / WRITER_BATCH_RECORDS_MAX) as u64;
/// When so much waits for the writer, of all shards, whoever sends is left unread: half of what one shard's queue surely
/// holds behind batches of a few records each. The other half is for what is on its way by then: what a turn has received, mail
/// between shards. Some tens of milliseconds of a disk.
pub const WRITER_BEHIND: u64 = ((WRITER_BATCHES_MAX - WRITER_AHEAD) / 2 * WRITER_BATCH_BYTES_MAX) as u64;
/// When it has become so little, everyone is read again. Several commits' worth, so that the writer never waits for those
/// who have to be woken first. Not much less than above: so long is somebody left unread. Not closer either: a shard that leaves
/// senders unread must have something before the writer, whatever it is still filling; and each time costs a system call for
/// each sender.
pub const WRITER_CAUGHT_UP: u64 = WRITER_BEHIND - 2 * WRITER_BATCH_BYTES_MAX as u64;
/// A writer that has taken nothing for so long is not behind, it is stuck: everyone is read again, and hears BUSY when the
/// queue is full.
pub const WRITER_STUCK: u64 = Mono::ms(5_000);
/// Records beside messages (refusals) that a shard may add while the writer's queue is full.
pub const NOTES_WHILE_FULL_MAX: u32 = 65_536;
/// The writer is woken when this many records wait …
pub const WRITER_TRIGGER_RECORDS: usize = 100;
/// … or the oldest has waited this long.
pub const WRITER_FLUSH: u64 = Mono::ms(50);
/// Bytes of messages the writer keeps in memory for `read` and status when nothing else is said; the oldest leave first.
/// Small enough to stay in a processor's cache, since each message passes through it.
pub const HISTORY_BYTES: usize = 16 * 1024 * 1024;
/// The most an operator may ask for.
pub const HISTORY_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Messages the writer keeps in memory.
pub const HISTORY_MESSAGES_MAX: usize = 262_144;
/// Requests for owed messages of one shard on their way to the keeper; what is more waits at the shard, one per agent.
pub const FETCHES_MAX: usize = 1024;
/// Answers of the keeper that a shard's queue has not taken; while there are so many, nothing more is fetched.
pub const FETCHES_IN_HAND_MAX: usize = 64;
/// Questions (status, agents, read) of one shard on their way.
pub const QUESTIONS_MAX: usize = 1024;

/// Places (users, addresses) that one shard remembers keys to have come from: 256 KiB; beyond it, it asks anew.
pub const SIGHTINGS_KNOWN_MAX: usize = 4096;
/// Refusals (by place and reason) that one shard has not yet told the audit trail, which asks every ten seconds. A storm of
/// guesses says no more by being told in full.
pub const REFUSALS_WAITING_MAX: usize = 256;
/// Places that the audit trail remembers of one key, the latest: those of a team behind one key. Coming back from one that is
/// forgotten counts as new. 10,000 keys with as many are 5 MiB.
pub const KEY_PLACES_MAX: usize = 32;
/// Events of one key about new places in an hour: whoever holds a key and many addresses cannot push out the rest.
pub const KEY_PLACES_PER_HOUR_MAX: u32 = 64;
/// Events that are read at a start to know the places of before: some tens of milliseconds.
pub const PLACES_READ_MAX: usize = 10_000;
/// Refused credentials are written to the audit trail once in this time for each place and reason, with their number …
pub const REFUSALS_TOLD_EVERY_MS: u64 = 10 * 60_000;
/// … and no more often than this in an hour in all: nobody who guesses can push out what others did.
pub const REFUSALS_PER_HOUR_MAX: u32 = 120;
/// Places and reasons of refusals that are remembered for that.
pub const REFUSALS_KNOWN_MAX: usize = 1024;

const _: () = assert!(
    WRITER_BEHIND - WRITER_CAUGHT_UP
        >= WRITER_BATCH_BYTES_MAX as u64 + WRITER_BATCH_RECORDS_MAX as u64 * WRITER_RECORD_COST,
    "a shard that leaves senders unread has more before the writer than in the batch that it fills"
);
const _: () =
    assert!(WRITER_CAUGHT_UP >= 2 * WRITER_BATCH_BYTES_MAX as u64, "one commit under way, and the next one ready");
const _: () = assert!(IN_FLIGHT_MAX as u64 >= 2 * ACK_STRIDE, "a window must outlast the acknowledgement stride");
const _: () = assert!(WAITING_BYTES_MAX >= FRAME_BYTES_MAX, "the largest frame must fit an empty queue");
const _: () = assert!(TAKE_OVER_SILENCE < DEAD_AFTER, "a dead holder can be replaced before it is given up");
const _: () =
    assert!(CONTROL_BURST as u64 >= 2 * NUMBERS_REMEMBERED, "what may be sent again may be sent again at once");
const _: () = assert!(HELLO_BYTES_MAX >= 5 * HELLO_TEXT_BYTES_MAX + 4096, "a full HELLO must fit");
