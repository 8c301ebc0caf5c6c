//! What was issued and what was used: an LMDB file of the vendor's own. Knows a key only by its hash; several programs
//! (the server, and the commands beside it) may have it open.

use crate::licence::{Day, Document, KeyHash, LimitTerms};
use crate::store::{OpenError, open_environment};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, RoTxn, WithoutTls};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Address space of the file; a licence takes half a kilobyte of it.
const MAP_BYTES: usize = 4 * 1024 * 1024 * 1024;
/// What the registry lies in, in its folder.
const DATA_FILE: &str = "data.mdb";
/// Rows of usage that one licence may have: 100 daemons for 400 days.
const USAGE_ROWS_MAX: usize = 40_000;
/// Longest name of a daemon that reports.
pub(super) const DAEMON_BYTES_MAX: usize = 32;

/// What went wrong with the registry.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    /// There is none.
    #[error("there is no registry in {0}; `relay-license issue` makes one")]
    Missing(String),
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read or written.
    #[error("the registry cannot be used: {0}")]
    Database(#[from] heed::Error),
    /// A row is not one of ours.
    #[error("row {0} of the registry cannot be read; it may be a newer version's")]
    Row(u64),
    /// One licence reports more than anybody uses.
    #[error("too much usage is known of this licence")]
    UsageFull,
}

/// One licence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Licence {
    /// Its number; given by the registry.
    pub(super) serial: u64,
    /// What it is looked up by; the key itself is kept nowhere.
    pub(super) key_hash: String,
    /// The key's beginning, for people.
    pub(super) key: String,
    pub(super) tier: String,
    #[serde(rename = "valid_until")]
    pub(super) valid_until_ms: u64,
    pub(super) offline: bool,
    pub(super) limits: LimitTerms,
    #[serde(rename = "issued_at")]
    pub(super) issued_at_ms: u64,
    #[serde(rename = "revoked_at")]
    pub(super) revoked_at_ms: Option<u64>,
}

impl Licence {
    /// What the vendor says of it at this moment.
    pub(super) fn document(&self, key_hash: KeyHash, now_ms: u64, nonce: &str) -> Document {
        let tier = crate::base::tier::Tier::of(&self.tier);
        let usual = Document::of_tier(
            tier.unwrap_or(crate::base::tier::Tier::Community),
            key_hash,
            now_ms,
            self.valid_until_ms,
        );
        Document {
            tier: self.tier.clone(),
            limits: self.limits,
            serial: self.serial,
            revoked_at_ms: self.revoked_at_ms,
            reason: self.revoked_at_ms.map(|_| "revoked".to_owned()),
            nonce: nonce.to_owned(),
            ..usual
        }
    }
}

type Table = Database<'static, Bytes, Bytes>;

/// The registry, open.
pub(super) struct Registry {
    env: Env<WithoutTls>,
    /// Serial number (big-endian) → [`Licence`] as JSON.
    licences: Table,
    /// Hash of the key → serial number.
    hashes: Table,
    /// Hash of the key, date, daemon → [`Day`] as JSON.
    usage: Table,
}

impl Registry {
    /// Opens the registry in `folder`. A mistyped folder is no empty registry: that one would call every customer's key unknown.
    pub(super) fn existing(folder: &Path) -> Result<Registry, RegistryError> {
        if !folder.join(DATA_FILE).is_file() {
            return Err(RegistryError::Missing(folder.display().to_string()));
        }
        Registry::open(folder)
    }

    /// Opens the registry in `folder`, or makes it.
    pub(super) fn open(folder: &Path) -> Result<Registry, RegistryError> {
        let env = open_environment(folder, MAP_BYTES)?;
        let created = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
            let mut create = |name| opener.create_database::<Bytes, Bytes>(transaction, Some(name));
            let all = [create("licences")?, create("hashes")?, create("usage")?];
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(all))
        })?;
        let [licences, hashes, usage] = created.unwrap_commit();
        Ok(Registry { env, licences, hashes, usage })
    }

    /// Enters a licence under the next number, which it gets.
    pub(super) fn issue(&self, licence: &mut Licence, key_hash: KeyHash) -> Result<(), RegistryError> {
        let mut transaction = self.env.write_txn()?;
        let last = self.licences.last(&transaction)?.map_or(0, |(key, _)| serial_of(key));
        licence.serial = last + 1;
        self.licences.put(&mut transaction, &licence.serial.to_be_bytes(), &json(licence))?;
        self.hashes.put(&mut transaction, &key_hash.0, &licence.serial.to_be_bytes())?;
        Ok(transaction.commit()?)
    }

    /// The licence whose key has this hash.
    pub(super) fn find(&self, key_hash: KeyHash) -> Result<Option<Licence>, RegistryError> {
        let transaction = self.env.read_txn()?;
        match self.hashes.get(&transaction, &key_hash.0)? {
            Some(serial) => self.read(&transaction, serial_of(serial)),
            None => Ok(None),
        }
    }

    /// Takes back the licence of this number. None: there is none. One that was taken back stays as it was.
    pub(super) fn revoke(&self, serial: u64, now_ms: u64) -> Result<Option<Licence>, RegistryError> {
        let mut transaction = self.env.write_txn()?;
        let Some(mut licence) = self.read(&transaction, serial)? else { return Ok(None) };
        licence.revoked_at_ms.get_or_insert(now_ms);
        self.licences.put(&mut transaction, &serial.to_be_bytes(), &json(&licence))?;
        transaction.commit()?;
        Ok(Some(licence))
    }

    /// Every licence, in the order they were issued.
    pub(super) fn list(&self) -> Result<Vec<Licence>, RegistryError> {
        let transaction = self.env.read_txn()?;
        let mut all = Vec::new();
        for row in self.licences.iter(&transaction)? {
            let (key, value) = row?;
            all.push(serde_json::from_slice(value).map_err(|_| RegistryError::Row(serial_of(key)))?);
        }
        Ok(all)
    }

    /// Keeps what a daemon reports; a day that is reported again replaces what was known of it.
    pub(super) fn note_usage(
        &self,
        key_hash: KeyHash,
        daemon: &str,
        days: &[(String, Day)],
    ) -> Result<(), RegistryError> {
        let mut transaction = self.env.write_txn()?;
        if self.usage.prefix_iter(&transaction, &key_hash.0)?.count() + days.len() > USAGE_ROWS_MAX {
            return Err(RegistryError::UsageFull);
        }
        for (date, day) in days {
            let key = [&key_hash.0, date.as_bytes(), daemon.as_bytes()].concat();
            self.usage.put(&mut transaction, &key, &json(day))?;
        }
        Ok(transaction.commit()?)
    }

    /// What is known of a licence's usage: days, the most agents at once on one of them, messages.
    pub(super) fn usage(&self, key_hash: KeyHash) -> Result<(u64, Day), RegistryError> {
        let transaction = self.env.read_txn()?;
        let (mut rows, mut total) = (0, Day::default());
        for row in self.usage.prefix_iter(&transaction, &key_hash.0)? {
            let day: Day = serde_json::from_slice(row?.1).unwrap_or_default();
            rows += 1;
            total.agents_peak = total.agents_peak.max(day.agents_peak);
            total.messages_sent = total.messages_sent.saturating_add(day.messages_sent);
        }
        Ok((rows, total))
    }

    fn read(&self, transaction: &RoTxn<'_, WithoutTls>, serial: u64) -> Result<Option<Licence>, RegistryError> {
        let row = self.licences.get(transaction, &serial.to_be_bytes())?;
        row.map(|row| serde_json::from_slice(row).map_err(|_| RegistryError::Row(serial))).transpose()
    }
}

fn serial_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers have a JSON form")
}
