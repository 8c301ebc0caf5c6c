//! The storage key as the operator hands it over: a short text, never printed, wiped when it is dropped. What it means is
//! the store's business.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

/// A key's text is one short line; anything longer is not one.
const KEY_TEXT_BYTES_MAX: u64 = 4096;

/// The text of a storage key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// What surrounds it on its line does not count.
    pub fn new(text: &str) -> KeyText {
        KeyText(Zeroizing::new(text.trim().to_owned()))
    }

    /// Reads the file that `relay keygen` made. Says as well whether others than its owner can read it.
    pub fn read(path: &Path) -> io::Result<(KeyText, bool)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        // A pipe (`--db-key <(…)`) has an owner alone, whatever its mode says.
        let open_to_others = metadata.is_file() && metadata.mode() & 0o077 != 0;
        // Room for all of it at once: a text that grows leaves its former self behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_TEXT_BYTES_MAX as usize + 1));
        file.take(KEY_TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
        let key = KeyText::new(&text);
        let too_long = text.len() as u64 > KEY_TEXT_BYTES_MAX;
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

impl fmt::Debug for KeyText {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("KeyText(..)")
    }
}
