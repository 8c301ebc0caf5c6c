//! The signed document: what the vendor says of one licence. The server's answer and an offline file are the same thing,
//! `<base64url(JSON)>.<base64url(signature)>`. Only what bears the vendor's signature is believed; only what this version
//! knows is used.

use super::key::KeyHash;
use super::signature::{PublicKey, SigningKey};
use crate::base::tier::{Entitlement, Feature, Features, Tier};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest document that is looked at.
pub const DOCUMENT_BYTES_MAX: usize = 16 * 1024;

/// A signature of Ed25519; a shorter one was cut off.
const SIGNATURE_BYTES: usize = 64;

/// What is granted of something that can be counted: absent, the tier's; `null`, no limit.
type Limit = Option<Option<u32>>;

/// The limits of a licence, where they are not its tier's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LimitTerms {
    /// Agents connected at once.
    #[serde(rename = "maxAgents", default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub agents_max: Limit,
    /// Messages per second.
    #[serde(
        rename = "maxMessagesPerSecond",
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    pub messages_per_second: Limit,
    /// Longest retention, in days.
    #[serde(rename = "retentionDays", default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub retention_days_max: Limit,
}

/// A member that is there, `null` or not.
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Limit, D::Error> {
    Option::deserialize(value).map(Some)
}

impl LimitTerms {
    /// Those of `tier`, all of them said.
    pub fn of_tier(tier: Tier) -> LimitTerms {
        let usual = Entitlement::of_tier(tier);
        LimitTerms {
            agents_max: Some(usual.agents_max),
            messages_per_second: Some(usual.messages_per_second),
            retention_days_max: Some(usual.retention_days_max),
        }
    }
}

/// What the vendor says. Times are milliseconds since 1970 (UTC).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// Which licence key it is about.
    #[serde(with = "hash_text")]
    pub key_hash: KeyHash,
    /// The tier's name, perhaps one of a later version.
    pub tier: String,
    /// Until when it is paid for.
    #[serde(rename = "valid_until")]
    pub valid_until_ms: u64,
    /// Names of what is granted; absent: the tier's features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// How much is granted.
    #[serde(default)]
    pub limits: LimitTerms,
    /// Whether it stands alone: the server is never asked about it.
    #[serde(default)]
    pub offline: bool,
    /// When it was signed; also the least that the time can be for whoever reads it.
    #[serde(rename = "issued_at")]
    pub issued_at_ms: u64,
    /// The vendor's number for the licence.
    pub serial: u64,
    /// When the vendor took it back.
    #[serde(rename = "revoked_at", default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
    /// Why it grants nothing: `revoked`, or `unknown` for a key that nobody issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the question held: an answer to another question is not believed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
}

mod hash_text {
    use super::KeyHash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &KeyHash, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(text: D) -> Result<KeyHash, D::Error> {
        let text = String::deserialize(text)?;
        KeyHash::parse(&text).ok_or_else(|| D::Error::custom("key_hash must be 64 hexadecimal digits"))
    }
}

/// Why a text is no document that can be believed. It never repeats the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than any document.
    #[error("the licence document is longer than {DOCUMENT_BYTES_MAX} bytes")]
    Length,
    /// Not two texts with a point between.
    #[error(
        "this is not a licence document: it must be two texts of base64url with a point between them; copy all of it"
    )]
    Shape,
    /// Not signed by the vendor.
    #[error(
        "the licence document does not bear the signature of this build's vendor: it was changed, cut off, or made for another build"
    )]
    Signature,
    /// Signed, but not as this version reads it.
    #[error("the licence document is signed but cannot be read by this version; a newer relay may read it")]
    Content,
}

impl Document {
    /// The document of a licence of `tier` with its tier's features and limits.
    pub fn of_tier(tier: Tier, key_hash: KeyHash, issued_at_ms: u64, valid_until_ms: u64) -> Document {
        Document {
            key_hash,
            tier: tier.name().to_owned(),
            valid_until_ms,
            features: Some(Feature::of_tier(tier).map(|feature| feature.name().to_owned()).collect()),
            limits: LimitTerms::of_tier(tier),
            offline: false,
            issued_at_ms,
            serial: 0,
            revoked_at_ms: None,
            reason: None,
            nonce: String::new(),
        }
    }

    /// The compact text that says so under `key`'s signature.
    pub fn sign(&self, key: &SigningKey) -> String {
        let json = serde_json::to_vec(self).expect("texts and numbers have a JSON form");
        let payload = URL_SAFE_NO_PAD.encode(json);
        let signature = URL_SAFE_NO_PAD.encode(key.sign(payload.as_bytes()));
        format!("{payload}.{signature}")
    }

    /// What it grants while it is good. Whether it is good now is not asked here.
    pub fn entitlement(&self) -> Entitlement {
        let Some(tier) = Tier::of(&self.tier) else {
            // Nobody here knows what was sold: nothing beyond what everybody may, and no feature at all.
            return Entitlement { features: Features::default(), ..Entitlement::of_tier(Tier::Community) };
        };
        let usual = Entitlement::of_tier(tier);
        let features = match &self.features {
            // What is free is not taken away by a list that does not mention it.
            Some(names) => {
                let named = names.iter().filter_map(|name| Feature::of(name));
                Feature::of_tier(Tier::Community).chain(named).collect()
            }
            None => usual.features,
        };
        let free = Entitlement::of_tier(Tier::Community);
        let least = |limit: Option<u32>, cap: Option<u32>| match (limit, cap) {
            (Some(limit), Some(cap)) => Some(limit.min(cap)),
            (limit, cap) => limit.or(cap),
        };
        let mut messages_per_second = self.limits.messages_per_second.unwrap_or(usual.messages_per_second);
        let mut retention_days_max = self.limits.retention_days_max.unwrap_or(usual.retention_days_max);
        if !features.has(Feature::HighThroughput) {
            messages_per_second = least(messages_per_second, free.messages_per_second);
        }
        if !features.has(Feature::ExtendedRetention) {
            retention_days_max = least(retention_days_max, free.retention_days_max);
        } else if !features.has(Feature::UnlimitedRetention) && retention_days_max.is_none() {
            retention_days_max = Entitlement::of_tier(Tier::Team).retention_days_max;
        }
        Entitlement {
            tier,
            features,
            agents_max: self.limits.agents_max.unwrap_or(usual.agents_max),
            messages_per_second,
            retention_days_max,
            webhooks_max: if features.has(Feature::Webhooks) { usual.webhooks_max } else { free.webhooks_max },
        }
    }
}

/// A document whose signature was checked, with the text that proves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    document: Document,
    text: String,
}

impl Signed {
    /// Reads a text and checks its signature. Space and line breaks in it do not matter: mail wraps lines.
    pub fn open(text: &str, key: PublicKey) -> Result<Signed, DocumentError> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::Length);
        }
        let text: String = text.split_ascii_whitespace().collect();
        let (payload, signature) = text.split_once('.').ok_or(DocumentError::Shape)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| DocumentError::Shape)?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(DocumentError::Shape);
        }
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| DocumentError::Shape)?;
        // Nothing inside is looked at before the signature is known to be good.
        if !key.believes(payload.as_bytes(), &signature) {
            return Err(DocumentError::Signature);
        }
        let document = serde_json::from_slice(&json).map_err(|_| DocumentError::Content)?;
        Ok(Signed { document, text })
    }

    /// Whether a text looks like a document rather than a key.
    pub fn is_like(text: &str) -> bool {
        text.contains('.')
    }

    /// What it says.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The text, with its signature.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::licence::LicenceKey;
    use serde_json::{Value, json};

    fn signing() -> SigningKey {
        SigningKey::from_random([7; 32])
    }

    fn hash() -> KeyHash {
        LicenceKey::from_random(Tier::Pro, 1).unwrap().hash()
    }

    /// A document of these members, signed.
    fn signed(members: &Value) -> Result<Signed, DocumentError> {
        let key = signing();
        let payload = URL_SAFE_NO_PAD.encode(members.to_string());
        let signature = URL_SAFE_NO_PAD.encode(key.sign(payload.as_bytes()));
        Signed::open(&format!("{payload}.{signature}"), key.public())
    }

    fn plain(members: Value) -> Value {
        let mut all =
            json!({ "key_hash": hash().to_string(), "tier": "pro", "valid_until": 10, "issued_at": 5, "serial": 1 });
        all.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        all
    }

    fn granted(members: Value) -> Entitlement {
        signed(&plain(members)).unwrap().document().entitlement()
    }

    #[test]
    fn a_document_reads_back_even_when_mail_has_wrapped_it() {
        for tier in Tier::ALL {
            let document = Document::of_tier(tier, hash(), 5, 10);
            let text = document.sign(&signing());
            let wrapped: Vec<&str> =
                text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let signed = Signed::open(&wrapped.join("\r\n "), signing().public()).unwrap();
            assert_eq!((signed.document(), signed.text()), (&document, text.as_str()));
            assert_eq!(document.entitlement(), Entitlement::of_tier(tier));
        }
    }

    #[test]
    fn every_changed_bit_is_found() {
        let text = Document::of_tier(Tier::Enterprise, hash(), 5, 10).sign(&signing());
        let public = signing().public();
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let changed = String::from_utf8(bytes).unwrap();
                // A space at the very end is no change.
                let same = changed.split_ascii_whitespace().collect::<String>() == text;
                assert!(same || Signed::open(&changed, public).is_err(), "byte {at}, bit {bit}");
            }
            assert!(Signed::open(&text[..at], public).is_err());
        }
        assert_eq!(Signed::open(&text, SigningKey::from_random([8; 32]).public()), Err(DocumentError::Signature));
        assert_eq!(Signed::open(&"a".repeat(DOCUMENT_BYTES_MAX + 1), public), Err(DocumentError::Length));
        assert_eq!(Signed::open("e30", public), Err(DocumentError::Shape));
    }

    #[test]
    fn unknown_members_and_features_are_passed_over() {
        let entitlement = granted(
            json!({ "colour": "blue", "features": ["webhooks", "teleportation"], "limits": { "maxMoons": 3 } }),
        );
        assert!(entitlement.features.has(Feature::Webhooks) && entitlement.features.has(Feature::BasicMessaging));
        assert!(!entitlement.features.has(Feature::TlsEncryption));
        assert_eq!(entitlement.agents_max, Some(100));
    }

    #[test]
    fn an_unknown_tier_has_no_feature_at_all() {
        let entitlement =
            granted(json!({ "tier": "platinum", "features": ["webhooks"], "limits": { "maxAgents": null } }));
        assert_eq!(entitlement.features, Features::default());
        assert_eq!((entitlement.tier, entitlement.agents_max), (Tier::Community, Some(10)));
    }

    #[test]
    fn a_limit_is_the_documents_or_unlimited_or_else_the_tiers() {
        let limits = |limits: Value| {
            let granted = granted(json!({ "tier": "enterprise", "limits": limits }));
            (granted.agents_max, granted.messages_per_second, granted.retention_days_max)
        };
        assert_eq!(limits(json!({})), (None, None, None));
        assert_eq!(
            limits(json!({ "maxAgents": 7, "maxMessagesPerSecond": 9, "retentionDays": 11 })),
            (Some(7), Some(9), Some(11))
        );
        assert_eq!(granted(json!({ "limits": { "maxAgents": null } })).agents_max, None);
        assert_eq!(granted(json!({ "limits": { "retentionDays": null } })).retention_days_max, Some(365));
    }

    #[test]
    fn a_limit_needs_its_feature() {
        let entitlement = granted(json!({ "features": ["tls_encryption"] }));
        assert_eq!((entitlement.messages_per_second, entitlement.retention_days_max), (Some(100), Some(7)));
        assert_eq!(entitlement.webhooks_max, Some(0));
    }

    #[test]
    fn what_is_signed_but_wrong_is_refused() {
        for wrong in [
            json!({ "valid_until": "tomorrow" }),
            json!({ "valid_until": -1 }),
            json!({ "key_hash": "12" }),
            json!({ "limits": { "maxAgents": 1e30 } }),
            json!({ "offline": 1 }),
        ] {
            assert_eq!(signed(&plain(wrong.clone())), Err(DocumentError::Content), "{wrong}");
        }
    }
}
