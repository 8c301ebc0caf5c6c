//! `relay import`: the messages.sqlite of the npm package, versions 1.0.9 to 1.6.0, into the store. The only file that
//! knows SQLite. The file is read and never written; a message that is in the store already is not added again.

use super::Failure;
use super::print::{self, Progress};
use super::sharing::sharing;
use super::stored::{self, Place};
use crate::base::ids::number_of_label;
use crate::base::limits::{FRAME_BYTES_MAX, LABEL_BYTES_MAX};
use crate::base::name::check_agent;
use crate::base::{AgentId, MessageId};
use crate::daemon::storage;
use crate::relay::{Recipients, Record};
use crate::store::index::GroupLimits;
use crate::store::{Segment, Store};
use crate::wire::json::{KIND_IN_DATA, KINDS};
use crate::wire::{MessageFields, encode};
use argh::{ArgsInfo, FromArgs};
use parking_lot::RwLock;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

sharing! {
    [folder]
    /// Bring the messages of an npm agent-relay into the store. The relay must be stopped meanwhile.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "import",
        help_triggers("-h", "--help"),
        example = "relay import ~/.agent-relay/1a2b3c4d5e6f/messages.sqlite",
        note = "Reads what agent-relay 1.0.9 to 1.6.0 wrote and changes nothing there. Imported messages are history: they keep
their times and are owed to nobody. Importing the same file again adds nothing twice. Import before the
agents come back, so that what is old stands before what is new."
    )]
    pub(super) struct Import {
        /// the npm package's messages.sqlite
        #[argh(positional)]
        file: PathBuf,
        /// file with the key of an encrypted store (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

/// Messages in one commit.
const BATCH_MESSAGES: u32 = 4096;
/// Bytes in one commit.
const BATCH_BYTES: usize = 1024 * 1024;
/// What the fields beside body, data and metadata may take of a frame, and the frame's own parts.
const OTHER_BYTES_MAX: usize = 8 * 1024;

/// What became of the rows of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    imported: u64,
    /// In the store already.
    known: u64,
    /// Longer than a message may be.
    too_long: u64,
    /// With an id that is longer than one may be.
    long_id: u64,
    /// From a name no agent may have, or without what a message has.
    unusable: u64,
}

pub(super) fn run(command: &Import) -> Result<(), Failure> {
    let place = Place::of(command.data_dir.as_deref(), command.global, command.db_key.as_deref())?;
    let (connection, columns) = look_at(&command.file)?;
    let lock = place.lock()?;
    let store = place.open_for_writing()?;
    storage::keep_time_once(&store).map_err(Failure::failed)?;
    let count = import(&connection, &columns, &store, &command.file, &mut Progress::start())?;
    // Here, where nobody waits, rather than at the next start.
    let tail = RwLock::new(store.tail(GroupLimits::default()).map_err(Failure::failed)?);
    store.index(&tail, true).map_err(Failure::failed)?;
    drop(store);
    drop(lock);
    if command.json {
        return print::json(&serde_json::json!({
            "imported": count.imported, "known": count.known, "too_long": count.too_long, "long_id": count.long_id,
            "unusable": count.unusable,
        }));
    }
    let mut text = format!("{} imported\n", print::count(count.imported, "message"));
    for (number, what) in [
        (count.known, "were in the store already"),
        (count.too_long, "are longer than a message may be (1 MiB) and were left out"),
        (count.long_id, "have an id of more than 256 bytes and were left out"),
        (count.unusable, "have a sender that no agent may be called, or lack a part, and were left out"),
    ] {
        if number > 0 {
            text += &format!("{number} {what}\n");
        }
    }
    print::out(&text)
}

/// The file, opened, and what to select of it.
fn look_at(path: &Path) -> Result<(Connection, String), Failure> {
    let failed = |error: rusqlite::Error| unreadable(path, &error);
    let connection = open(path).map_err(failed)?;
    if !has_table(&connection).map_err(failed)? {
        return Err(unreadable(path, &"it has no table `messages`"));
    }
    let columns = columns_of(&connection).map_err(failed)?;
    Ok((connection, columns))
}

/// Whether `messages` is a table with rows of its own: a view is a program, which may never end.
fn has_table(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master
        WHERE name = 'messages' COLLATE NOCASE AND type = 'table' AND rootpage > 0";
    connection.query_row(sql, [], |row| Ok(row.get::<_, i64>(0)? > 0))
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Failed(format!(
        "cannot read {}: {error}; it must be the messages.sqlite of agent-relay 1.0.9 to 1.6.0",
        path.display()
    ))
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    // NO_MUTEX: one thread has it. Not by URI: a path is a path.
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Whoever wrote the file decides nothing here: no views or triggers of its own making are run.
    connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cell_size_check = ON;")?;
    Ok(connection)
}

/// What to select: early 1.x files lack some columns.
fn columns_of(connection: &Connection) -> rusqlite::Result<String> {
    let mut known = HashSet::new();
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info('messages') LIMIT 1000")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        known.insert(row.get::<_, String>(0)?);
    }
    let wanted =
        ["id", "ts", "sender", "recipient", "topic", "kind", "body", "data", "payload_meta", "thread", "is_urgent"];
    let column = |name: &&str| match *name {
        // Without these a row is no message, and the error names them.
        "id" | "ts" | "sender" | "body" => (*name).to_owned(),
        name if !known.contains(name) => "NULL".to_owned(),
        // A huge one is brought into memory by nobody: what belongs to a message is at most a frame long.
        "data" | "payload_meta" => format!("CASE WHEN length(CAST({name} AS BLOB)) <= 1048576 THEN {name} END"),
        name => name.to_owned(),
    };
    let columns: Vec<String> = wanted.iter().map(column).collect();
    Ok(columns.join(", "))
}

/// Every row that fits a frame, the oldest first.
fn query(columns: &str) -> String {
    format!("SELECT {columns} FROM messages WHERE {FITS} ORDER BY ts, rowid")
}

/// Looks at lengths alone, so that no huge value is ever brought into memory.
const FITS: &str =
    "coalesce(length(CAST(id AS BLOB)), 0) <= 256 AND coalesce(length(CAST(body AS BLOB)), 0) <= 1048576";

/// A column may hold anything, whatever its declared type: a number as text is a text here, and so is what is not UTF-8.
fn text_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(index)? {
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        _ => None,
    })
}

/// The id of a message from `sender`, by the sender's own id.
fn id_of(sender: &str, label: &str) -> MessageId {
    MessageId { sender: AgentId::of(sender.as_bytes()), number: number_of_label(label.as_bytes()) }
}

/// Of a row that is left out for the length of its id.
const ID_TOO_LONG: &str = "length(CAST(id AS BLOB)) > 256";

/// A row as a message. None: it cannot be one.
fn message(row: &Row<'_>) -> rusqlite::Result<Option<Imported>> {
    let text = |index: usize| text_of(row, index);
    let number =
        |index: usize| -> rusqlite::Result<Option<i64>> { Ok(row.get_ref(index)?.as_i64_or_null().ok().flatten()) };
    let (Some(label), Some(ts), Some(from)) = (text(0)?, number(1)?, text(2)?) else { return Ok(None) };
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || check_agent(from.as_bytes()).is_err() {
        return Ok(None);
    }
    let (to, topic) = (text(3)?.unwrap_or_default(), text(4)?.unwrap_or_default());
    let (kind, body) = (text(5)?.unwrap_or_default(), text(6)?.unwrap_or_default());
    let embedded = |text: Option<String>| text.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let (data, meta) = (embedded(text(7)?), embedded(text(8)?));
    let thread = text(9)?.unwrap_or_default();
    let urgent = number(10)?.unwrap_or(0) != 0;
    let code = KINDS.iter().position(|known| *known == kind);
    let mut members = serde_json::Map::new();
    if code.is_none() {
        members.insert("kind".into(), kind.into());
    }
    if let Some(data) = data {
        members.insert("data".into(), data);
    }
    let data = if members.is_empty() { String::new() } else { serde_json::Value::Object(members).to_string() };
    let importance = meta.as_ref().and_then(|meta| meta["importance"].as_f64());
    let importance = importance.unwrap_or(if urgent { 100.0 } else { 0.0 }).clamp(0.0, 100.0).round() as u8;
    let meta = meta.filter(serde_json::Value::is_object).map_or_else(String::new, |meta| meta.to_string());
    let id = id_of(&from, &label);
    let at_ms = u64::try_from(ts).unwrap_or(0);
    let fields = MessageFields {
        id,
        sent_at_ms: at_ms,
        kind: code.map_or(KIND_IN_DATA, |code| code as u8),
        importance,
        from: from.as_bytes(),
        to: to.as_bytes(),
        topic: topic.strip_prefix('#').unwrap_or(&topic).as_bytes(),
        thread: thread.as_bytes(),
        label: label.as_bytes(),
        text: body.as_bytes(),
        data: data.as_bytes(),
        meta: meta.as_bytes(),
        ..MessageFields::default()
    };
    let other = from.len() + to.len() + topic.len() + thread.len() + label.len();
    if other > OTHER_BYTES_MAX || other + body.len() + data.len() + meta.len() + OTHER_BYTES_MAX > FRAME_BYTES_MAX {
        return Ok(Some(Imported { id, at_ms, raw: Vec::new(), checksum: 0 }));
    }
    let mut raw = Vec::new();
    let checksum = encode::message_body(&mut raw, &fields);
    Ok(Some(Imported { id, at_ms, raw, checksum }))
}

/// A message on its way into the store; an empty `raw`: it is too long.
#[derive(Debug)]
struct Imported {
    id: MessageId,
    at_ms: u64,
    raw: Vec<u8>,
    checksum: u32,
}

impl Imported {
    /// History alone: with no recipient it has a place in nobody's order, so it is owed to nobody.
    /// A time that has not come yet is shown as when it was sent, and is not when it came: retention goes by that.
    fn into_record(self, now_ms: u64) -> Record {
        Record::Message {
            id: self.id,
            raw: self.raw.into(),
            checksum: self.checksum,
            accepted_at_ms: self.at_ms.min(now_ms),
            ttl_ms: 0,
            parts: 0,
            recipients: Recipients::Many(Box::default()),
        }
    }
}

/// The ids in the file that no record in the store has: only these are remembered while the store is read, so that memory
/// is bounded by the file, not by the store.
fn new_ids(
    connection: &Connection,
    store: &Store,
    path: &Path,
    progress: &mut Progress,
) -> Result<HashSet<MessageId>, Failure> {
    let failed = |error: rusqlite::Error| unreadable(path, &error);
    let mut ids = HashSet::new();
    let sql = format!("SELECT id, sender FROM messages WHERE {FITS}");
    let mut statement = connection.prepare(&sql).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let text = |index| text_of(row, index).map_err(failed);
        if let (Some(label), Some(from)) = (text(0)?, text(1)?) {
            ids.insert(id_of(&from, &label));
        }
    }
    stored::each_message(store, |message, done| {
        ids.remove(&message.id);
        progress.show(&format!("looking for what is in the store already: {} %", (done * 100.0) as u32));
        Ok(())
    })?;
    Ok(ids)
}

fn import(
    connection: &Connection,
    columns: &str,
    store: &Store,
    path: &Path,
    progress: &mut Progress,
) -> Result<Count, Failure> {
    let failed = |error: rusqlite::Error| unreadable(path, &error);
    let all: i64 = connection.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).map_err(failed)?;
    let all = u64::try_from(all).unwrap_or(0);
    let mut new = new_ids(connection, store, path, progress)?;
    let mut count = Count::default();
    let (mut looked_at, mut ahead) = (0, false);
    let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let mut segment = Segment::new();
    let mut statement = connection.prepare(&query(columns)).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        looked_at += 1;
        match message(row).map_err(failed)? {
            None => count.unusable += 1,
            Some(message) if message.raw.is_empty() => count.too_long += 1,
            Some(message) if !new.remove(&message.id) => count.known += 1,
            Some(message) => {
                // The rest has a time that has not come: what is old does not stay with it as long as it does.
                if message.at_ms > now_ms && !ahead && !segment.is_empty() {
                    store.append(&mut segment).map_err(Failure::failed)?;
                    segment.clear();
                }
                ahead = message.at_ms > now_ms;
                segment.push(&message.into_record(now_ms));
                count.imported += 1;
                if segment.messages() >= BATCH_MESSAGES || segment.bytes() >= BATCH_BYTES {
                    store.append(&mut segment).map_err(Failure::failed)?;
                    segment.clear();
                    progress.show(&format!("{} of {all} messages imported", count.imported));
                }
            }
        }
    }
    if !segment.is_empty() {
        store.append(&mut segment).map_err(Failure::failed)?;
    }
    let sql = format!("SELECT count(*) FROM messages WHERE {ID_TOO_LONG}");
    let long: i64 = connection.query_row(&sql, [], |row| row.get(0)).map_err(failed)?;
    count.long_id = u64::try_from(long).unwrap_or(0);
    count.too_long += all.saturating_sub(looked_at + count.long_id);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;
    use crate::wire::Message;
    use std::ops::ControlFlow;

    /// Written by the storage adapter of agent-relay 1.6.0 itself.
    const FIXTURE: &[u8] = include_bytes!("../../tests/cli/fixtures/messages-1.6.0.sqlite");

    struct World {
        directory: tempfile::TempDir,
        store: Store,
    }

    impl World {
        fn new() -> World {
            let directory = tempfile::tempdir().unwrap();
            let store =
                Store::open(Options { map_bytes: 1 << 30, ..Options::new(directory.path().join("store"), None) });
            let store = store.unwrap();
            store.begin_epoch(1, 0).unwrap();
            World { directory, store }
        }

        fn file(&self, bytes: &[u8]) -> PathBuf {
            let path = self.directory.path().join("messages.sqlite");
            std::fs::write(&path, bytes).unwrap();
            path
        }

        fn import(&self, path: &Path) -> Result<Count, Failure> {
            let (connection, columns) = look_at(path)?;
            import(&connection, &columns, &self.store, path, &mut Progress::start())
        }

        /// Time, from, to, topic, thread, kind, importance, text, data and metadata of each message.
        fn stored(&self) -> Vec<String> {
            let mut found = Vec::new();
            stored::each_message(&self.store, |message, _| {
                assert!(message.recipients.is_empty());
                let body = Message::check(message.raw, message.checksum).unwrap();
                let fields = body.fields();
                assert_eq!((fields.id, fields.sent_at_ms), (message.id, message.accepted_at_ms));
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let parts = [fields.from, fields.to, fields.topic, fields.thread].map(text);
                let rest = [fields.text, fields.data, fields.meta].map(text);
                let (kind, importance) = (fields.kind, fields.importance);
                found.push(format!("{} {parts:?} {kind} {importance} {rest:?}", message.accepted_at_ms));
                Ok(())
            })
            .unwrap();
            found
        }
    }

    #[test]
    fn what_1_6_0_wrote_is_imported_once_with_all_that_it_says() {
        let world = World::new();
        let path = world.file(FIXTURE);
        let count = world.import(&path).unwrap();
        assert_eq!(count, Count { imported: 8, unusable: 1, ..Count::default() });
        insta::assert_snapshot!(world.stored().join("\n"));
        let again = world.import(&path).unwrap();
        assert_eq!(again, Count { known: 8, unusable: 1, ..Count::default() });
        assert_eq!(world.stored().len(), 8);
        assert_eq!(std::fs::read(&path).unwrap(), FIXTURE, "the file is as it was");
    }

    #[test]
    fn imported_messages_are_found_by_both_sides_and_owed_to_nobody() {
        use crate::store::{find, replay};
        let world = World::new();
        world.import(&world.file(FIXTURE)).unwrap();
        let tail = RwLock::new(world.store.tail(GroupLimits::default()).unwrap());
        world.store.index(&tail, true).unwrap();
        let count = |query: find::HistoryQuery| {
            find::history(&world.store, &tail, &find::HistoryQuery { limit: 100, ..query }).unwrap().rows.len()
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(count(find::HistoryQuery::default()), 8);
        assert_eq!(count(find::HistoryQuery { to: some("Alice"), ..Default::default() }), 1);
        assert_eq!(count(find::HistoryQuery { agent: some("Alice"), ..Default::default() }), 6);
        assert_eq!(count(find::HistoryQuery { to: some("#general"), ..Default::default() }), 1);
        let mut memory = crate::relay::Memory::default();
        let snapshot = world.store.snapshot().unwrap();
        for number in 1..=snapshot.last_segment().unwrap() {
            let mut segment = snapshot.segment(number).unwrap().unwrap();
            segment
                .records(|_, record| {
                    replay::apply(&mut memory, number, record);
                    ControlFlow::Continue(())
                })
                .unwrap();
        }
        assert!(memory.is_empty());
    }

    #[test]
    fn an_older_file_lacks_columns_and_what_does_not_fit_is_counted() {
        let world = World::new();
        let path = world.directory.path().join("old.sqlite");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE messages (id TEXT PRIMARY KEY, ts INTEGER NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL,
                    topic TEXT, kind TEXT NOT NULL, body TEXT NOT NULL, data TEXT);
                 INSERT INTO messages VALUES ('a', 5, 'Ann', 'Bob', '#builds', 'note', 'hello', 'not json');
                 INSERT INTO messages VALUES ('b', 4, 'Ann', 'Bob', NULL, 'message', zeroblob(2000000), NULL);
                 INSERT INTO messages VALUES ('c', 3, 'Ann', 'Bob', NULL, 'message', 'x', zeroblob(2000000));
                 INSERT INTO messages VALUES ('d', 'late', 'Ann', 'Bob', NULL, 'message', 'x', NULL);
                 INSERT INTO messages VALUES ('e', 2, 'Ann', 'Bob', NULL, 'message', printf('%1048576s', 'x'), NULL);",
            )
            .unwrap();
        drop(connection);
        let count = world.import(&path).unwrap();
        assert_eq!(count, Count { imported: 2, too_long: 2, unusable: 1, ..Count::default() });
        let stored = world.stored();
        assert_eq!(stored[0], "3 [\"Ann\", \"Bob\", \"\", \"\"] 0 0 [\"x\", \"\", \"\"]");
        assert!(stored[1].starts_with("5 [\"Ann\", \"Bob\", \"builds\", \"\"] 255 0"), "{}", stored[1]);
    }

    /// A file with this table and these rows of id, ts, sender, recipient and body.
    fn made(world: &World, name: &str, sql: &str) -> PathBuf {
        let path = world.directory.path().join(name);
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
        path
    }

    const TABLE: &str = "CREATE TABLE messages (id, ts INTEGER, sender, recipient, body);";

    #[test]
    fn ids_and_names_that_are_not_utf8_are_read_in_one_way_and_none_is_lost() {
        let world = World::new();
        let rows = "INSERT INTO messages VALUES (CAST(x'61ff' AS TEXT), 1, 'Ann', 'Bob', 'one');
             INSERT INTO messages VALUES (7, 2, 'Ann', 'Bob', 'two');
             INSERT INTO messages VALUES ('c', 3, 'Ann', CAST(x'426fff' AS TEXT), 'three');
             INSERT INTO messages VALUES (printf('%257s', 'x'), 4, 'Ann', 'Bob', 'four');";
        let path = made(&world, "bytes.sqlite", &format!("{TABLE}{rows}"));
        let count = Count { imported: 3, long_id: 1, ..Count::default() };
        assert_eq!(world.import(&path).unwrap(), count);
        assert_eq!(world.import(&path).unwrap(), Count { imported: 0, known: 3, ..count });
    }

    #[test]
    fn a_time_in_the_future_is_shown_and_is_not_when_the_message_came() {
        let world = World::new();
        let rows = "INSERT INTO messages VALUES ('a', 99000000000000, 'Ann', 'Bob', 'hello');
             INSERT INTO messages VALUES ('b', 5, 'Ann', 'Bob', 'hello');";
        let path = made(&world, "future.sqlite", &format!("{TABLE}{rows}"));
        assert_eq!(world.import(&path).unwrap().imported, 2);
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
        let mut sent_at_ms = Vec::new();
        stored::each_message(&world.store, |message, _| {
            assert!(message.accepted_at_ms <= now_ms);
            let body = Message::check(message.raw, message.checksum).unwrap();
            sent_at_ms.push(body.fields().sent_at_ms);
            Ok(())
        })
        .unwrap();
        assert_eq!(sent_at_ms, [5, 99_000_000_000_000]);
        let snapshot = world.store.snapshot().unwrap();
        let last_ms = |number| snapshot.segment_header(number).unwrap().unwrap().last_ms;
        assert!(last_ms(1) == 5 && last_ms(2) <= now_ms, "retention goes by this");
    }

    #[test]
    fn a_view_is_no_table() {
        let world = World::new();
        let endless = "CREATE VIEW messages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT i AS id, i AS ts, 'Ann' AS sender, 'Bob' AS recipient, 'x' AS body FROM n;";
        match world.import(&made(&world, "view.sqlite", endless)) {
            Err(Failure::Failed(text)) => assert!(text.contains("it has no table `messages`"), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_with_a_sentence() {
        let world = World::new();
        let mut damaged = FIXTURE.to_vec();
        damaged[512..].fill(0xa5);
        for bytes in [&b"not a database, but long enough to look like one"[..], &b""[..], &damaged] {
            let path = world.file(bytes);
            match world.import(&path) {
                Err(Failure::Failed(text)) => assert!(text.contains("it must be the messages.sqlite of"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(world.import(Path::new("/nowhere/at/all")).is_err());
        assert!(world.stored().is_empty());
    }
}
