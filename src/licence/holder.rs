//! How this machine's licence stands: the cache first, then the server, then grace; revocation, expiry and clocks. Pure:
//! it says when it wants an answer of the server, and is handed what came.
//!
//! ```text
//! key ── no document yet ──▶ pending ──answer──▶ good ◀──answer── unreachable (a day old, still paid for)
//!                                                 │ revoked_at in an answer ──▶ revoked, not_issued
//!                                                 │ valid_until passed, nobody asked yet ──▶ grace ── 7 days ──▶ expired
//!                                                 └ valid_until passed before the answer was signed ──▶ expired
//! document (offline) ──▶ good ── valid_until ──▶ expired
//! ```

use super::cache::Cache;
use super::clock::{Clock, Reading, date};
use super::document::{DocumentError, Signed};
use super::key::{KeyHash, LicenceKey};
use super::lapse::Lapse;
use super::signature::PublicKey;
use crate::base::tier::{Entitlement, Feature, Refused, Tier};

const HOUR_MS: u64 = 3_600_000;
/// How long an answer of the server is good for, so that a revocation acts within a day.
pub const FRESH_MS: u64 = 24 * HOUR_MS;
/// How long a licence is believed past its end while the server cannot be asked whether it was renewed.
pub const GRACE_MS: u64 = 7 * 24 * HOUR_MS;
/// How often a licence is looked at when nothing is due before.
pub const LOOK_MS: u64 = HOUR_MS;
/// The first wait before the server is asked again; each further one is twice as long, up to an hour.
pub const RETRY_MS: u64 = 60_000;
/// How long before its end the operator is told.
const ENDING_MS: u64 = 14 * 24 * HOUR_MS;

/// What the operator handed over.
#[derive(Clone, Debug)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// A key.
    Key(LicenceKey),
    /// An offline licence.
    Document(Box<Signed>),
    /// Something that is neither; the sentence says why.
    Unusable(String),
}

impl Given {
    /// Reads a key or a document.
    pub fn parse(text: &str, public: PublicKey) -> Given {
        if text.trim().is_empty() {
            return Given::Nothing;
        }
        if !Signed::is_like(text) {
            return LicenceKey::parse(text).map_or_else(|error| Given::Unusable(error.to_string()), Given::Key);
        }
        let signed = match Signed::open(text, public) {
            Ok(signed) => signed,
            Err(error) => return Given::Unusable(error.to_string()),
        };
        if !signed.document().offline {
            return Given::Unusable(
                "this document is not an offline licence; activate the licence key itself".to_owned(),
            );
        }
        let entitlement = signed.document().entitlement();
        // A tier of a later version is explained as such.
        if Tier::of(&signed.document().tier).is_some() && entitlement.require(Feature::OfflineLicense).is_err() {
            return Given::Unusable(format!(
                "{}; ask for the licence key instead",
                Refused(Feature::OfflineLicense).sentence()
            ));
        }
        Given::Document(Box::new(signed))
    }

    /// What it is known by.
    pub fn key_hash(&self) -> Option<KeyHash> {
        match self {
            Given::Key(key) => Some(key.hash()),
            Given::Document(signed) => Some(signed.document().key_hash),
            Given::Nothing | Given::Unusable(_) => None,
        }
    }
}

/// How a licence stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Standing {
    Community,
    Good,
    Unreachable,
    Grace,
    Expired,
    Revoked,
    NotIssued,
    Pending,
    UnknownTier,
    Unusable,
}

impl Standing {
    /// As log, `license show` and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Community => "community",
            Standing::Good => "good",
            Standing::Unreachable => "unreachable",
            Standing::Grace => "grace",
            Standing::Expired => "expired",
            Standing::Revoked => "revoked",
            Standing::NotIssued => "not_issued",
            Standing::Pending => "pending",
            Standing::UnknownTier => "unknown_tier",
            Standing::Unusable => "unusable",
        }
    }

    /// Whether what the document says is granted.
    pub fn grants(self) -> bool {
        matches!(self, Standing::Good | Standing::Unreachable | Standing::Grace)
    }
}

/// Why an answer of the server was not believed. None of these changes what is granted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not a document of the vendor.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// About somebody else's key.
    #[error("the licence server answered about another licence key")]
    OtherKey,
    /// An answer to another question: somebody replays an old one.
    #[error("the licence server's answer is not to this question")]
    OtherQuestion,
}

/// The licence of this machine.
#[derive(Clone, Debug)]
pub struct Holder {
    given: Given,
    public: PublicKey,
    has_server: bool,
    clock: Clock,
    /// Law: it bears the vendor's signature and is about the key that was given.
    latest: Option<Signed>,
    lapse: Lapse,
    /// Whether the server is asked again, and from what time of the clock on.
    ask_at_ms: u64,
    failures: u32,
    trouble: Option<Trouble>,
    granted: Entitlement,
}

/// The server cannot be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Trouble {
    since_ms: u64,
    reason: String,
}

/// What a holder is made from.
#[derive(Clone, Debug)]
pub struct Beginning<'a> {
    /// What the operator handed over.
    pub given: Given,
    /// Whose signature is believed.
    pub public: PublicKey,
    /// Whether there is a server to ask.
    pub has_server: bool,
    /// What an earlier run kept.
    pub cache: &'a Cache,
    /// What an earlier run kept of the retention.
    pub lapse: Lapse,
    /// Which boot of the machine this is.
    pub boot: &'a str,
}

impl Holder {
    /// The licence as it stands before anybody is asked.
    pub fn new(beginning: Beginning<'_>, now: Reading) -> Holder {
        let Beginning { given, public, has_server, cache, lapse, boot } = beginning;
        let mut clock = Clock::start(cache.clock.as_ref(), boot, now);
        let latest = match &given {
            Given::Document(signed) => Some(signed.as_ref().clone()),
            Given::Key(key) => cache.document(&key.hash()).cloned(),
            Given::Nothing | Given::Unusable(_) => None,
        };
        if let Some(signed) = &latest {
            clock.at_least(now, signed.document().issued_at_ms);
        }
        let granted = Entitlement::of_tier(Tier::Community);
        let mut holder = Holder {
            given,
            public,
            has_server,
            clock,
            latest,
            lapse,
            ask_at_ms: 0,
            failures: 0,
            trouble: None,
            granted,
        };
        holder.ask_at_ms = holder.fresh_until_ms();
        holder.look(now);
        holder
    }

    /// How it stands.
    pub fn standing(&self, now: Reading) -> Standing {
        match &self.given {
            Given::Nothing => return Standing::Community,
            Given::Unusable(_) => return Standing::Unusable,
            Given::Key(_) | Given::Document(_) => {}
        }
        let Some(signed) = &self.latest else { return Standing::Pending };
        let (document, time_ms) = (signed.document(), self.clock.time_ms(now));
        if document.revoked_at_ms.is_some() {
            let unknown = document.reason.as_deref() == Some("unknown");
            return if unknown { Standing::NotIssued } else { Standing::Revoked };
        }
        if time_ms >= document.valid_until_ms {
            // Signed after the end, the document is the vendor's own word that it was not renewed. An offline licence has
            // nobody to ask, and so nothing to wait for.
            let is_final = document.offline || document.issued_at_ms >= document.valid_until_ms;
            let in_grace = time_ms < document.valid_until_ms.saturating_add(GRACE_MS);
            return if in_grace && !is_final { Standing::Grace } else { Standing::Expired };
        }
        if Tier::of(&document.tier).is_none() {
            return Standing::UnknownTier;
        }
        let stale = !document.offline && time_ms >= document.issued_at_ms.saturating_add(FRESH_MS);
        if stale { Standing::Unreachable } else { Standing::Good }
    }

    /// Looks at it anew. Gives the entitlement if it has changed.
    pub fn look(&mut self, now: Reading) -> Option<Entitlement> {
        let entitlement = match (self.standing(now), &self.latest) {
            (standing, Some(signed)) if standing.grants() || standing == Standing::UnknownTier => {
                signed.document().entitlement()
            }
            _ => Entitlement::of_tier(Tier::Community),
        };
        self.lapse.look(entitlement.retention_days_max, self.clock.time_ms(now));
        if entitlement == self.granted {
            return None;
        }
        self.granted = entitlement.clone();
        Some(entitlement)
    }

    /// What was granted at the last look.
    pub fn entitlement(&self) -> &Entitlement {
        &self.granted
    }

    /// Whose licence the server is to be asked about, if it is to be asked now.
    pub fn wants_answer(&self, now: Reading) -> Option<KeyHash> {
        let Given::Key(key) = &self.given else { return None };
        (self.has_server && self.clock.time_ms(now) >= self.ask_at_ms).then(|| key.hash())
    }

    /// An answer came to the question that held `nonce`. An unsigned or foreign one changes nothing but the time of the next
    /// question: nobody on the way can take a licence away. `jitter` is any random number.
    pub fn answered(&mut self, now: Reading, answer: &str, nonce: &str, jitter: u64) -> Result<(), AnswerError> {
        match self.believed(answer, nonce) {
            Ok(signed) => {
                let before_ms = self.clock.time_ms(now) as i64;
                self.clock.set(now, signed.document().issued_at_ms);
                self.lapse.clock_moved((self.clock.time_ms(now) as i64).saturating_sub(before_ms));
                self.latest = Some(signed);
                (self.failures, self.trouble) = (0, None);
                // Up to an hour early, so that not everybody asks at the same time and a day is never exceeded.
                self.ask_at_ms = self
                    .fresh_until_ms()
                    .saturating_sub(jitter % HOUR_MS)
                    .max(self.clock.time_ms(now).saturating_add(RETRY_MS));
                Ok(())
            }
            Err(error) => {
                self.unreachable(now, &error.to_string(), jitter);
                Err(error)
            }
        }
    }

    fn believed(&self, answer: &str, nonce: &str) -> Result<Signed, AnswerError> {
        let signed = Signed::open(answer, self.public)?;
        if Some(signed.document().key_hash) != self.given.key_hash() {
            return Err(AnswerError::OtherKey);
        }
        if signed.document().nonce != nonce || nonce.is_empty() {
            return Err(AnswerError::OtherQuestion);
        }
        Ok(signed)
    }

    /// The server could not be asked, or what came was not its word.
    pub fn unreachable(&mut self, now: Reading, reason: &str, jitter: u64) {
        let time_ms = self.clock.time_ms(now);
        let since_ms = self.trouble.as_ref().map_or(time_ms, |trouble| trouble.since_ms);
        self.trouble = Some(Trouble { since_ms, reason: reason.to_owned() });
        let wait_ms = (RETRY_MS << self.failures.min(6)).min(HOUR_MS);
        self.failures = self.failures.saturating_add(1);
        self.ask_at_ms = time_ms.saturating_add(wait_ms + jitter % (wait_ms / 4));
    }

    /// Asks as soon as possible: the operator wants to know.
    pub fn ask_now(&mut self) {
        self.ask_at_ms = 0;
    }

    /// How long until it should be looked at again, milliseconds.
    pub fn next_look_ms(&self, now: Reading) -> u64 {
        let time_ms = self.clock.time_ms(now);
        let end = self.latest.as_ref().map(|signed| signed.document().valid_until_ms);
        let asks = matches!(self.given, Given::Key(_)) && self.has_server;
        [
            asks.then_some(self.ask_at_ms),
            end.filter(|end| *end > time_ms),
            end.map(|end| end.saturating_add(GRACE_MS)).filter(|end| *end > time_ms),
            self.lapse.until_ms(),
        ]
        .into_iter()
        .flatten()
        .map(|at_ms| at_ms.saturating_sub(time_ms))
        .fold(LOOK_MS, u64::min)
    }

    /// Until when what is known is as good as an answer of the server.
    fn fresh_until_ms(&self) -> u64 {
        let Some(signed) = &self.latest else { return 0 };
        let document = signed.document();
        let grants = document.revoked_at_ms.is_none() && document.issued_at_ms < document.valid_until_ms;
        // A licence that has ended may be renewed any time: it is asked about more often.
        let fresh_ms = if grants { FRESH_MS } else { HOUR_MS };
        let until_ms = document.issued_at_ms.saturating_add(fresh_ms);
        if grants { until_ms.min(document.valid_until_ms) } else { until_ms }
    }

    /// The longest retention in force: what is granted, or what was until 7 days ago.
    pub fn retention_days_max(&self) -> Option<u32> {
        self.lapse.days_max()
    }

    /// What is kept of the retention.
    pub fn lapse(&self) -> Lapse {
        self.lapse
    }

    /// Puts what is to be kept into the cache.
    pub fn keep(&self, cache: &mut Cache, now: Reading) {
        cache.clock = Some(self.clock.kept(now));
        if let (Given::Key(_), Some(signed)) = (&self.given, &self.latest) {
            cache.insert(signed.clone());
        }
    }

    /// What the operator handed over.
    pub fn given(&self) -> &Given {
        &self.given
    }

    /// What is known of it, signed.
    pub fn document(&self) -> Option<&Signed> {
        self.latest.as_ref()
    }

    /// What time it is.
    pub fn time_ms(&self, now: Reading) -> u64 {
        self.clock.time_ms(now)
    }

    /// Until when it is believed past its end, if it is now.
    pub fn grace_until_ms(&self, now: Reading) -> Option<u64> {
        let document = self.latest.as_ref()?.document();
        (self.standing(now) == Standing::Grace).then(|| document.valid_until_ms.saturating_add(GRACE_MS))
    }

    /// Why nothing newer is known of it.
    pub fn why_unasked(&self) -> String {
        match (&self.trouble, self.has_server) {
            (Some(trouble), _) => {
                format!("the licence server cannot be asked since {} ({})", date(trouble.since_ms), trouble.reason)
            }
            (None, false) => "no licence server is set (licence.server in relay.toml)".to_owned(),
            (None, true) => "the licence server has not been asked yet".to_owned(),
        }
    }

    /// How it stands, for people.
    pub fn sentence(&self, now: Reading) -> String {
        let (tier, end) = match &self.latest {
            Some(signed) => {
                let document = signed.document();
                let tier = Tier::of(&document.tier).unwrap_or(Tier::Community);
                (tier.title(), document.valid_until_ms)
            }
            None => (Tier::Community.title(), 0),
        };
        let until = date(end);
        let why = self.why_unasked();
        match self.standing(now) {
            Standing::Community => "no licence is activated: this is the community tier".to_owned(),
            Standing::Good if self.is_offline() => format!("an offline {tier} licence, good until {until}"),
            Standing::Good => format!("a {tier} licence, good until {until}"),
            Standing::Unreachable => format!(
                "a {tier} licence, good until {until} and 7 days beyond, although {why}"
            ),
            Standing::Grace => format!(
                "the {tier} licence ended on {until} and {why}; everything goes on until {}, then this is the community tier",
                date(end.saturating_add(GRACE_MS))
            ),
            Standing::Expired => format!(
                "the {tier} licence ended on {until}: this is the community tier. Nobody was disconnected; renew it, or `relay license activate` another"
            ),
            Standing::Revoked => format!("the {tier} licence was revoked: this is the community tier. Nobody was disconnected; ask whoever sold it to you"),
            Standing::NotIssued => "the licence server does not know this key: this is the community tier. Check that it is your newest one".to_owned(),
            Standing::Pending => format!("the licence key has not been confirmed yet, because {why}: this is the community tier until it is"),
            Standing::UnknownTier => "the licence is of a tier that this version does not know: it grants no feature here. A newer relay may know it".to_owned(),
            Standing::Unusable => match &self.given {
                Given::Unusable(reason) => format!("{reason}. This is the community tier"),
                _ => String::new(),
            },
        }
    }

    /// What the operator should do something about.
    pub fn warnings(&self, now: Reading) -> Vec<String> {
        let mut warnings = Vec::new();
        let time_ms = self.clock.time_ms(now);
        let standing = self.standing(now);
        if !matches!(standing, Standing::Community | Standing::Good) {
            warnings.push(self.sentence(now));
        }
        if let Some(signed) = self.latest.as_ref().filter(|_| standing.grants()) {
            let left_ms = signed.document().valid_until_ms.saturating_sub(time_ms);
            if left_ms > 0 && left_ms <= ENDING_MS && signed.document().offline {
                warnings.push(format!(
                    "the offline licence ends on {}; ask for its renewal",
                    date(signed.document().valid_until_ms)
                ));
            }
        }
        // Without a licence the time does not matter to it.
        if !matches!(self.given, Given::Nothing) {
            warnings.extend(self.clock.warning(now));
        }
        warnings
    }

    /// That messages will be deleted earlier than now, where a retention of `asked_days` was asked for (`None`: unlimited).
    pub fn retention_warning(&self, now: Reading, asked_days: Option<u32>) -> Option<String> {
        let until_ms = self.lapse.until_ms()?;
        let whole = |days: Option<u32>| days.unwrap_or(u32::MAX);
        let (asked, granted) = (whole(asked_days), whole(self.granted.retention_days_max));
        if asked.min(whole(self.lapse.days_max())) <= asked.min(granted) {
            return None;
        }
        let asked = asked_days.map_or("an unlimited retention was".to_owned(), |days| format!("{days} days were"));
        let whose = if self.standing(now).grants() { "this licence" } else { "the community tier" };
        Some(format!(
            "messages older than {granted} days are kept until {}, then deleted: {asked} asked for, and {whose} allows {granted}. Renew it, or save them with `relay export`",
            date(until_ms)
        ))
    }

    /// Whether the licence stands alone: nobody is ever asked or told anything.
    pub fn is_offline(&self) -> bool {
        matches!(self.given, Given::Document(_))
    }
}

#[cfg(test)]
#[path = "holder_tests.rs"]
mod tests;
