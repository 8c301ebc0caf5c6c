//! `relay backup`, `relay restore` and `relay rekey`: whole copies of the store. A copy appears under its name only when
//! it is complete and on the disk; what is replaced is moved aside, never overwritten.

use super::Failure;
use super::print::{self, Progress, bytes};
use super::sharing::sharing;
use super::stored::{self, Place};
use crate::daemon::settings_key::KeyText;
use crate::store::copy::{self, Copied, CopyError, OnDamage, Restored};
use argh::{ArgsInfo, FromArgs};
use std::path::{Path, PathBuf};

sharing! {
    [folder]
    /// Copy the store to a new folder, while the relay runs or while it does not.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "backup",
        help_triggers("-h", "--help"),
        example = "relay backup /mnt/backups/relay-$(date +%F)",
        note = "The copy holds everything that had a durable receipt when it was begun, and is checked. That of an encrypted
store is encrypted with the same key: keep the key elsewhere."
    )]
    pub(super) struct Backup {
        /// the folder to make; it must not exist, or be empty
        #[argh(positional)]
        directory: PathBuf,
        /// copy what is whole of a damaged store, which is refused otherwise
        #[argh(switch)]
        damaged: bool,
        /// file with the key of an encrypted store (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [folder]
    /// Put a backup where the store is. The relay must be stopped.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "restore",
        help_triggers("-h", "--help"),
        example = "relay down
relay restore /mnt/backups/relay-2026-11-21 --replace
relay up --detach",
        note = "The backup is checked as a whole first, and stays as it is. With --replace the present store is moved aside, not
removed: its new name is printed."
    )]
    pub(super) struct Restore {
        /// the folder that `relay backup` made
        #[argh(positional)]
        directory: PathBuf,
        /// move a store that is there aside
        #[argh(switch)]
        replace: bool,
        /// take what is whole of a damaged backup, which is refused otherwise
        #[argh(switch)]
        damaged: bool,
        /// file with the key of an encrypted backup (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [folder]
    /// Encrypt the store, change its key, or decrypt it. The relay must be stopped.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "rekey",
        help_triggers("-h", "--help"),
        example = "relay rekey --new-db-key new.key                    encrypt a store that is not
relay rekey --db-key old.key --new-db-key new.key   change its key
relay rekey --db-key old.key --to-plain             decrypt it",
        note = "The store is written anew beside the old one, which needs as much space again; then the two change places at once.
Backups that were made before keep the old key. What was on the disk in clear may stay readable there until
its blocks are used again."
    )]
    pub(super) struct Rekey {
        /// file with the present key of an encrypted store (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// file with the new key; `relay keygen` makes one
        #[argh(option, arg_name = "file")]
        new_db_key: Option<PathBuf>,
        /// decrypt it
        #[argh(switch)]
        to_plain: bool,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn backup(command: &Backup) -> Result<(), Failure> {
    let place = Place::of(command.data_dir.as_deref(), command.global, command.db_key.as_deref())?;
    let store = place.open_for_reading()?;
    let mut progress = Progress::start();
    let each = |copied| show(&mut progress, copied);
    let copied = store.backup_of(on_damage(command.damaged), &command.directory, each).map_err(Failure::failed)?;
    drop(progress);
    say_damage(copied);
    if command.json {
        return print::json(&as_json(copied, &command.directory));
    }
    print::out(&format!("{} copied to {}\n", bytes(copied.bytes), shown(&command.directory)))
}

pub(super) fn restore(command: &Restore) -> Result<(), Failure> {
    let place = Place::of(command.data_dir.as_deref(), command.global, command.db_key.as_deref())?;
    let lock = place.lock()?;
    let seconds = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let mut progress = Progress::start();
    let folder = place.folder();
    let each = |copied| show(&mut progress, copied);
    let restored = copy::restore(
        &command.directory,
        &folder,
        place.key(),
        command.replace,
        on_damage(command.damaged),
        seconds,
        each,
    );
    let Restored { copied, replaced: aside } = restored.map_err(Failure::failed)?;
    drop((progress, lock));
    say_damage(copied);
    if command.json {
        let mut value = as_json(copied, &folder);
        value["replaced"] = serde_json::json!(aside);
        return print::json(&value);
    }
    let mut text = format!("{} restored to {}\n", bytes(copied.bytes), shown(&folder));
    if let Some(aside) = aside {
        text += &format!("the store that was there is now {0}; `rm -r {0}` when nobody needs it\n", shown(&aside));
    }
    print::out(&text)
}

pub(super) fn rekey(command: &Rekey) -> Result<(), Failure> {
    let new = match (&command.new_db_key, command.to_plain) {
        (Some(path), false) => {
            let read = KeyText::read(path);
            let (text, _) = read.map_err(|error| Failure::Failed(format!("cannot read {}: {error}", shown(path))))?;
            Some(stored::key_of(&text)?)
        }
        (None, true) => None,
        _ => return Err(Failure::Usage("give either --new-db-key FILE or --to-plain".to_owned())),
    };
    let place = Place::of(command.data_dir.as_deref(), command.global, command.db_key.as_deref())?;
    let lock = place.lock()?;
    let encrypted = new.is_some();
    let mut progress = Progress::start();
    let each = |copied| show(&mut progress, copied);
    let copied = copy::rekey(&place.folder(), place.key(), new, each).map_err(|error| match error {
        CopyError::SameKey if command.to_plain => Failure::Failed("the store is not encrypted".to_owned()),
        error => Failure::failed(error),
    })?;
    drop((progress, lock));
    if command.json {
        let mut value = as_json(copied, &place.folder());
        value["encrypted"] = encrypted.into();
        return print::json(&value);
    }
    let now = match &command.new_db_key {
        Some(path) => format!("the store is encrypted with {0}; start with `relay up --db-key {0}`", shown(path)),
        None => "the store is not encrypted any more; start without --db-key".to_owned(),
    };
    print::out(&format!("{} written; {now}\n", bytes(copied.bytes)))
}

fn on_damage(damaged: bool) -> OnDamage {
    if damaged { OnDamage::PassOver } else { OnDamage::Refuse }
}

/// Says that the copy is not all that was there.
fn say_damage(copied: Copied) {
    if copied.damaged > 0 {
        let places = print::count(copied.damaged, "damaged place");
        print::note(&format!("{places} passed over: what cannot be read there is not in the copy either"));
    }
}

fn shown(path: &Path) -> String {
    print::clean(&path.display().to_string()).into_owned()
}

fn as_json(copied: Copied, folder: &Path) -> serde_json::Value {
    serde_json::json!({ "folder": folder, "bytes": copied.bytes, "last_segment": copied.segment, "damaged": copied.damaged })
}

fn show(progress: &mut Progress, copied: Copied) {
    let of = match copied.last_segment {
        0 => String::new(),
        last => format!(", segment {} of {last}", copied.segment),
    };
    progress.show(&format!("{} copied{of} …", bytes(copied.bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{AgentId, MessageId};
    use crate::relay::{Recipients, Record};
    use crate::store::index::GroupLimits;
    use crate::store::{Key, Options, Segment, Store, check, find};
    use crate::wire::{MessageFields, encode};
    use parking_lot::RwLock;

    #[test]
    fn an_index_stays_good_through_backup_restore_and_new_keys() {
        let directory = tempfile::tempdir().unwrap();
        let folder = |name: &str| directory.path().join(name);
        let options =
            |name: &str, key: Option<&Key>| Options { map_bytes: 1 << 30, ..Options::new(folder(name), key.cloned()) };
        let store = Store::open(options("store", None)).unwrap();
        store.begin_epoch(1, 0).unwrap();
        let limits = GroupLimits { messages: 2, ..GroupLimits::default() };
        let tail = RwLock::new(store.tail(limits).unwrap());
        for number in 1..=5 {
            let id = MessageId { sender: AgentId::of(b"ann"), number };
            let mut raw = Vec::new();
            let fields = MessageFields { id, from: b"ann", to: b"bob", text: b"hello", ..MessageFields::default() };
            let checksum = encode::message_body(&mut raw, &fields);
            let recipients = Recipients::Many(Box::default());
            let mut segment = Segment::new();
            let raw = raw.into();
            segment.push(&Record::Message {
                id,
                raw,
                checksum,
                accepted_at_ms: number,
                ttl_ms: 0,
                parts: 1,
                recipients,
            });
            store.append(&mut segment).unwrap();
            store.index(&tail, true).unwrap();
        }
        store.backup(&folder("backup"), |_| {}).unwrap();
        drop(store);
        let (one, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let sound = |name: &str, key: Option<&Key>| {
            let report = check::check(&options(name, key).reading(), |_| {}).unwrap();
            assert_eq!((report.damage_count, report.messages, report.groups), (0, 5, 2), "{:?}", report.damages);
            let store = Store::open(options(name, key).reading()).unwrap();
            let tail = RwLock::new(store.tail(limits).unwrap());
            store.index(&tail, false).unwrap();
            let query = find::HistoryQuery { to: Some("bob".to_owned()), limit: 10, ..Default::default() };
            assert_eq!(find::history(&store, &tail, &query).unwrap().rows.len(), 5);
        };
        sound("store", None);
        sound("backup", None);
        let mut key: Option<&Key> = None;
        for new in [Some(&one), Some(&other), None] {
            copy::rekey(&folder("store"), key.cloned(), new.cloned(), |_| {}).unwrap();
            key = new;
            sound("store", key);
        }
        copy::restore(&folder("backup"), &folder("store"), None, true, OnDamage::Refuse, 7, |_| {}).unwrap();
        sound("store", None);
        sound("store.replaced-7", None);
    }
}
