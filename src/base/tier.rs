//! Tiers, features and limits as tables and values. What a licence grants is decided elsewhere and handed in; whoever
//! guards a feature asks here, and gets the sentence to refuse with.

use std::fmt;
use std::sync::Arc;

/// What is sold, or given away, from less to more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Tier {
    Community,
    Pro,
    Team,
    Enterprise,
}

impl Tier {
    /// Every tier, from less to more.
    pub const ALL: [Tier; 4] = [Tier::Community, Tier::Pro, Tier::Team, Tier::Enterprise];

    /// As documents, WELCOME and JSON name it.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Community => "community",
            Tier::Pro => "pro",
            Tier::Team => "team",
            Tier::Enterprise => "enterprise",
        }
    }

    /// As people read it.
    pub const fn title(self) -> &'static str {
        match self {
            Tier::Community => "Community",
            Tier::Pro => "Pro",
            Tier::Team => "Team",
            Tier::Enterprise => "Enterprise",
        }
    }

    /// The tier of this name; an unknown name is no tier.
    pub fn of(name: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name)
    }

    /// The next one up.
    pub fn next(self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| *tier > self)
    }
}

/// Something that a tier grants. Each tier has those of the tiers below it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Feature {
    BasicMessaging,
    DashboardBasic,
    SqliteStorage,
    Authentication,
    ApiKeys,
    TlsEncryption,
    StorageEncryption,
    ExtendedRetention,
    Webhooks,
    HighThroughput,
    DashboardMetrics,
    MultiMachine,
    TcpTransport,
    TeamDashboard,
    RoleBasedAccess,
    AuditLogs,
    SsoSaml,
    SsoOidc,
    UnlimitedRetention,
    OfflineLicense,
    CustomSla,
    DedicatedSupport,
}

/// One row of the table of features.
struct FeatureRow {
    feature: Feature,
    name: &'static str,
    tier: Tier,
    /// What people call it, at the beginning of a sentence.
    title: &'static str,
}

const fn row(feature: Feature, name: &'static str, tier: Tier, title: &'static str) -> FeatureRow {
    FeatureRow { feature, name, tier, title }
}

/// The product's table of features, in its order.
const FEATURES: [FeatureRow; 22] = [
    row(Feature::BasicMessaging, "basic_messaging", Tier::Community, "Messaging"),
    row(Feature::DashboardBasic, "dashboard_basic", Tier::Community, "The dashboard"),
    // The name of "local storage", kept from the days when that was SQLite.
    row(Feature::SqliteStorage, "sqlite_storage", Tier::Community, "Local storage"),
    row(Feature::Authentication, "authentication", Tier::Pro, "Authentication"),
    row(Feature::ApiKeys, "api_keys", Tier::Pro, "API key management"),
    row(Feature::TlsEncryption, "tls_encryption", Tier::Pro, "TLS encryption"),
    row(Feature::StorageEncryption, "storage_encryption", Tier::Pro, "Storage encryption"),
    row(Feature::ExtendedRetention, "extended_retention", Tier::Pro, "Retention of more than 7 days"),
    row(Feature::Webhooks, "webhooks", Tier::Pro, "Webhook management"),
    row(Feature::HighThroughput, "high_throughput", Tier::Pro, "More than 100 messages per second"),
    row(Feature::DashboardMetrics, "dashboard_metrics", Tier::Pro, "The metrics page"),
    row(Feature::MultiMachine, "multi_machine", Tier::Team, "A cluster of machines"),
    row(Feature::TcpTransport, "tcp_transport", Tier::Team, "TCP off loopback"),
    row(Feature::TeamDashboard, "team_dashboard", Tier::Team, "The team dashboard"),
    row(Feature::RoleBasedAccess, "role_based_access", Tier::Team, "Role-based access"),
    row(Feature::AuditLogs, "audit_logs", Tier::Team, "The audit log"),
    row(Feature::SsoSaml, "sso_saml", Tier::Team, "Sign-in by SAML"),
    row(Feature::SsoOidc, "sso_oidc", Tier::Team, "Sign-in by OpenID Connect"),
    row(Feature::UnlimitedRetention, "unlimited_retention", Tier::Enterprise, "Unlimited retention"),
    row(Feature::OfflineLicense, "offline_license", Tier::Enterprise, "An offline licence"),
    row(Feature::CustomSla, "custom_sla", Tier::Enterprise, "A custom service level"),
    row(Feature::DedicatedSupport, "dedicated_support", Tier::Enterprise, "Dedicated support"),
];

impl Feature {
    /// Every feature, in the product's order.
    pub fn all() -> impl Iterator<Item = Feature> {
        FEATURES.iter().map(|row| row.feature)
    }

    /// As documents, WELCOME and JSON name it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The lowest tier that has it.
    pub fn tier(self) -> Tier {
        self.row().tier
    }

    /// The feature of this name; a name of a later version is no feature here.
    pub fn of(name: &str) -> Option<Feature> {
        FEATURES.iter().find(|row| row.name == name).map(|row| row.feature)
    }

    /// The features of `tier`, those of the tiers below it first.
    pub fn of_tier(tier: Tier) -> impl Iterator<Item = Feature> {
        FEATURES.iter().filter(move |row| row.tier <= tier).map(|row| row.feature)
    }

    fn row(self) -> &'static FeatureRow {
        &FEATURES[self as usize]
    }
}

/// A gated feature was asked for without its tier. The text is the product's and says what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused(pub Feature);

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.sentence())?;
        write!(out, "; `relay license activate KEY` activates it")
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// What is refused, without what to do about it.
    pub fn sentence(self) -> String {
        let tier = self.0.tier().title();
        match self.0 {
            // These read so in the product's own documents.
            Feature::ApiKeys => format!("{tier} tier required for API key management"),
            Feature::Webhooks => format!("{tier} tier required for webhook management"),
            other => format!("{} requires {tier} tier", other.row().title),
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(u32);

impl Features {
    /// Those that `tier` has.
    pub fn of_tier(tier: Tier) -> Features {
        Feature::of_tier(tier).collect()
    }

    /// Whether `feature` is among them.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u8 != 0
    }

    /// All of them, in the product's order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::all().filter(move |feature| self.has(*feature))
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Features {
        Features(features.into_iter().fold(0, |set, feature| set | 1 << feature as u8))
    }
}

/// What this daemon may do. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The tier whose name is printed.
    pub tier: Tier,
    /// What is granted.
    pub features: Features,
    /// Agents connected at once, over all shards.
    pub agents_max: Option<u32>,
    /// Messages per second, soft: above it senders are slowed, nothing is lost.
    pub messages_per_second: Option<u32>,
    /// Longest retention, in days.
    pub retention_days_max: Option<u32>,
    /// Webhook endpoints.
    pub webhooks_max: Option<u32>,
}

/// The entitlement in force, shared by all threads; a change is a new one.
pub type Entitled = Arc<Entitlement>;

impl Entitlement {
    /// What `tier` grants when its licence says nothing else.
    pub fn of_tier(tier: Tier) -> Entitlement {
        let (agents_max, messages_per_second, retention_days_max, webhooks_max) = match tier {
            Tier::Community => (Some(10), Some(100), Some(7), Some(0)),
            Tier::Pro => (Some(100), Some(1_000), Some(90), Some(10)),
            Tier::Team => (Some(500), Some(5_000), Some(365), Some(50)),
            Tier::Enterprise => (None, None, None, None),
        };
        Entitlement {
            tier,
            features: Features::of_tier(tier),
            agents_max,
            messages_per_second,
            retention_days_max,
            webhooks_max,
        }
    }

    /// No limit at all: what tests of other things, simulated worlds and benchmarks of the heart run on.
    pub fn unlimited() -> Arc<Entitlement> {
        Arc::new(Entitlement::of_tier(Tier::Enterprise))
    }

    /// The one place that every gated flag, command and endpoint asks.
    pub fn require(&self, feature: Feature) -> Result<(), Refused> {
        if self.features.has(feature) { Ok(()) } else { Err(Refused(feature)) }
    }

    /// The retention in force when `asked` days were asked for.
    pub fn retention_days(&self, asked: u32) -> u32 {
        self.retention_days_max.map_or(asked, |max| asked.min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_lowered_to_what_the_tier_allows_and_never_raised() {
        let in_force = |asked| Tier::ALL.map(|tier| Entitlement::of_tier(tier).retention_days(asked));
        assert_eq!(in_force(120), [7, 90, 120, 120]);
        assert_eq!(in_force(36_500), [7, 90, 365, 36_500]);
        assert_eq!(in_force(2), [2, 2, 2, 2]);
    }

    #[test]
    fn every_tier_has_exactly_the_features_of_the_products_table() {
        const COMMUNITY: &[&str] = &["basic_messaging", "dashboard_basic", "sqlite_storage"];
        const PRO: &[&str] = &[
            "authentication",
            "api_keys",
            "tls_encryption",
            "storage_encryption",
            "extended_retention",
            "webhooks",
            "high_throughput",
            "dashboard_metrics",
        ];
        const TEAM: &[&str] = &[
            "multi_machine",
            "tcp_transport",
            "team_dashboard",
            "role_based_access",
            "audit_logs",
            "sso_saml",
            "sso_oidc",
        ];
        const ENTERPRISE: &[&str] = &["unlimited_retention", "offline_license", "custom_sla", "dedicated_support"];
        let table = [COMMUNITY, PRO, TEAM, ENTERPRISE];
        let known: Vec<&str> = table.concat();
        assert_eq!(Feature::all().map(Feature::name).collect::<Vec<_>>(), known);
        for (index, tier) in Tier::ALL.into_iter().enumerate() {
            let expected = table[..=index].concat();
            let entitlement = Entitlement::of_tier(tier);
            for feature in Feature::all() {
                let granted = expected.contains(&feature.name());
                assert_eq!(entitlement.features.has(feature), granted, "{} {}", tier.name(), feature.name());
                assert_eq!(entitlement.require(feature).is_ok(), granted);
                assert_eq!(Feature::of(feature.name()), Some(feature));
            }
        }
        assert_eq!((Tier::of("gold"), Feature::of("teleportation")), (None, None));
    }

    #[test]
    fn a_refusal_names_the_tier_and_the_command() {
        let text = |feature| Refused(feature).to_string();
        assert!(text(Feature::TlsEncryption).starts_with("TLS encryption requires Pro tier; "));
        assert!(text(Feature::StorageEncryption).starts_with("Storage encryption requires Pro tier; "));
        assert!(text(Feature::ApiKeys).starts_with("Pro tier required for API key management; "));
        assert!(
            text(Feature::TcpTransport).contains("requires Team tier")
                && text(Feature::TcpTransport).contains("`relay license activate KEY`")
        );
    }
}
