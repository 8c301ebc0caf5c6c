//! The secret that a client shows the relay. Wiped when it is dropped; no debug form shows it.

use super::Error;
use crate::base::keys::{KEY_PREFIX, TOKEN_PREFIX};
use crate::wire::CREDENTIAL_BYTES_MAX;
use std::fmt;
use zeroize::Zeroizing;

/// An API key or an access token, or none.
#[derive(Clone, Default)]
pub struct Credential {
    /// As HELLO names it; empty: none.
    kind: &'static str,
    text: Zeroizing<String>,
}

impl Credential {
    /// The credential that `text` is, by what it begins with. The text is wiped, whatever it is.
    pub fn read(text: String) -> Result<Credential, Error> {
        let whole = Zeroizing::new(text);
        let text = whole.trim();
        let kind = if text.starts_with(KEY_PREFIX) {
            "api_key"
        } else if text.starts_with(TOKEN_PREFIX) {
            "token"
        } else {
            let rule = format!(
                "the credential begins neither with {KEY_PREFIX} (an API key) nor with {TOKEN_PREFIX} (a token)"
            );
            return Err(Error::Rule(rule));
        };
        if text.len() > CREDENTIAL_BYTES_MAX {
            return Err(Error::Rule(format!("a credential is at most {CREDENTIAL_BYTES_MAX} bytes long")));
        }
        Ok(Credential { kind, text: Zeroizing::new(text.to_owned()) })
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        !self.kind.is_empty()
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(super) fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.is_some() { "Credential(..)" } else { "none" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_says_what_it_is_and_nothing_shows_it() {
        let key = Credential::read(" ar_key_abcdef\n".into()).unwrap();
        assert_eq!((key.kind(), key.reveal()), ("api_key", "ar_key_abcdef"));
        assert_eq!(Credential::read("ar_tok_00".into()).unwrap().kind(), "token");
        assert_eq!(format!("{key:?} {:?}", Credential::default()), "Credential(..) none");
        let refused = Credential::read("hunter2".into()).unwrap_err().to_string();
        assert!(refused.contains("ar_key_") && !refused.contains("hunter2"), "{refused}");
    }
}
