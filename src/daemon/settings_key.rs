//! The storage key as the operator hands it over: a short text, never printed, wiped when it is dropped. What it means is
//! the store's business.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A key's text is one short line; anything longer is not one.
const KEY_TEXT_BYTES_MAX: u64 = 4096;

/// The text of a storage key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

impl KeyText {
    /// What surrounds it on its line does not count.
    pub fn new(text: &str) -> KeyText {
        KeyText(text.trim().to_owned())
    }

    /// Reads the file that `relay keygen` made. Says as well whether others than its owner can read it.
    pub fn read(path: &Path) -> io::Result<(KeyText, bool)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        // A pipe (`--db-key <(…)`) has an owner alone, whatever its mode says.
        let open_to_others = metadata.is_file() && metadata.mode() & 0o077 != 0;
        let mut text = String::new();
        file.take(KEY_TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
        let key = KeyText::new(&text);
        let too_long = text.len() as u64 > KEY_TEXT_BYTES_MAX;
        wipe(&mut text);
        if key.0.is_empty() || too_long {
            return Err(io::Error::other("it holds no key; `relay keygen --output FILE` makes one"));
        }
        Ok((key, open_to_others))
    }

    /// The text itself, for the store alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Overwrites a text where it lies. The compiler may not leave it out: the memory is looked at afterwards.
fn wipe(text: &mut String) {
    let mut bytes = std::mem::take(text).into_bytes();
    bytes.fill(0);
    std::hint::black_box(&bytes);
}

impl Drop for KeyText {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("KeyText(..)")
    }
}
