//! Encryption: keys, nonces, and what can be seen of a sealed store.

use crate::damage::raw_values;
use crate::made::*;
use agent_relay::store::{Key, OpenError, RowChange, Segment, Store};
use std::collections::HashSet;
use std::fs;

#[test]
fn a_missing_a_wrong_and_a_needless_key_are_refused_with_a_sentence_and_nothing_is_touched() {
    let (sealed, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (folder, key) in [(&sealed, key()), (&plain, None)] {
        fill(&open(folder.path(), key), 2, 5, 100);
    }
    let bytes = |folder: &tempfile::TempDir| fs::read(folder.path().join("data.mdb")).unwrap();
    let before = (bytes(&sealed), bytes(&plain));
    let wrong = Some(Key::parse(OTHER_KEY).unwrap());
    let refused = |folder: &tempfile::TempDir, key| Store::open(options(folder.path(), key)).err().unwrap();
    assert!(matches!(refused(&sealed, None), OpenError::KeyMissing(_)));
    assert!(matches!(refused(&sealed, wrong.clone()), OpenError::WrongKey(_)));
    assert!(matches!(refused(&plain, wrong), OpenError::KeyForPlain(_)));
    assert!(refused(&sealed, None).to_string().contains("--db-key"));
    assert_eq!(before, (bytes(&sealed), bytes(&plain)));
}

#[test]
fn nothing_personal_can_be_read_in_an_encrypted_store() {
    let folder = tempfile::tempdir().unwrap();
    let plain = tempfile::tempdir().unwrap();
    for (folder, key) in [(&folder, key()), (&plain, None)] {
        let store = open(folder.path(), key);
        store.append(&mut segment(&every_kind())).unwrap();
        fill(&store, 20, 20, 400);
        let memory = store.recover(|_| {}).unwrap();
        let changes: Vec<_> = memory.rows().map(|row| RowChange { row, labels_pushed: 0 }).collect();
        store.keep_rows(&changes, &[]).unwrap();
        store.absorb().unwrap();
        // The journal holds this one alone.
        store.append(&mut segment(&[message(1_000_000, 1, 400)])).unwrap();
    }
    let has = |folder: &tempfile::TempDir, file: &str, wanted: &[u8]| {
        let bytes = fs::read(folder.path().join(file)).unwrap();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    let ids = [agent(0).0.to_le_bytes(), agent(0).0.to_be_bytes()];
    for secret in [SECRET_WORD.as_bytes(), NAME_WORD.as_bytes(), b"claude", b"short-lived", &ids[0], &ids[1]] {
        for file in ["data.mdb", "journal"] {
            assert!(!has(&folder, file, secret), "{file}: {}", String::from_utf8_lossy(secret));
        }
    }
    for file in ["data.mdb", "journal"] {
        assert!(has(&plain, file, SECRET_WORD.as_bytes()), "the search would find it");
    }
    assert!(has(&plain, "data.mdb", NAME_WORD.as_bytes()), "the search would find it");
}

/// (epoch, nonce counter) of each piece of each segment, as the file has it.
fn nonces(folder: &std::path::Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let of_value = |value: &[u8]| -> Vec<(Vec<u8>, Vec<u8>)> {
        let pieces = u32::from_le_bytes(value[36..40].try_into().unwrap()) as usize;
        (0..pieces).map(|piece| (value[32..36].to_vec(), value[44 + piece * 20 + 8..][..8].to_vec())).collect()
    };
    raw_values(folder, "log").iter().flat_map(|(_, value)| of_value(value)).collect()
}

#[test]
fn no_nonce_is_used_twice_over_failed_commits_and_openings() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut small = options(folder.path(), key());
        // Each doubling of this map is a commit that failed and was tried again.
        small.map_bytes = 256 * 1024;
        let store = Store::open(small).unwrap();
        store.begin_epoch(1, 0).unwrap();
        let mut big = Segment::new();
        for number in 0..20 {
            big.clear();
            (0..4).for_each(|part| _ = big.push(&message(number * 4 + part, 1, 50_000)));
            if number % 2 == 0 { store.append(&mut big) } else { store.append_at_once(&mut big) }.unwrap();
        }
        store.absorb().unwrap();
    }
    let all = nonces(folder.path());
    assert!(all.len() >= 240);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    let salts: HashSet<_> = raw_values(folder.path(), "meta")
        .into_iter()
        .filter(|(name, _)| name.starts_with(b"salt/"))
        .map(|(_, salt)| salt)
        .collect();
    assert_eq!(salts.len(), 3);
}
