//! Flags that several commands have in common, each group declared once. Knows what a flag is called and what its help
//! says; what it means is said where it is used.

/// Declares a command with groups of flags beside its own: `filter` (which stored messages; stands first), `place` (which
/// daemon of this machine), `folder` (which data, daemon or not), `reach` (which daemon anywhere; see
/// [`reaching`](super::reach)).
macro_rules! sharing {
    ([] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        $(#[$about])*
        $sight struct $name { $($flags)* }
    };
    ([reach] $($command:tt)*) => {
        crate::cli::reach::reaching! { $($command)* }
    };
    ([filter $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [$($group)*]
            $(#[$about])*
            $sight struct $name {
                /// only messages from this agent
                #[argh(option, arg_name = "name")]
                from: Option<String>,
                /// only messages to this agent, to everybody (*) or to a #topic
                #[argh(option, arg_name = "name")]
                to: Option<String>,
                /// only messages from or to this agent
                #[argh(option, arg_name = "name")]
                agent: Option<String>,
                /// only messages of this thread
                #[argh(option, arg_name = "thread")]
                thread: Option<String>,
                /// only messages to this topic
                #[argh(option, arg_name = "topic")]
                topic: Option<String>,
                /// only messages since then: 90m, 2h, 7d ago, or a time such as 2026-11-21T10:00:00Z
                #[argh(option, arg_name = "time")]
                since: Option<String>,
                /// only messages until then, said in the same way
                #[argh(option, arg_name = "time")]
                until: Option<String>,
                $($flags)*
            }
        }

        impl $name {
            /// The messages that its flags mean.
            fn filter(&self) -> Result<crate::cli::filter::Filter, crate::cli::Failure> {
                crate::cli::filter::Filter::of(&[
                    ("from", &self.from),
                    ("to", &self.to),
                    ("agent", &self.agent),
                    ("thread", &self.thread),
                    ("topic", &self.topic),
                    ("since", &self.since),
                    ("until", &self.until),
                ])
            }
        }
    };
    ([place] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        $(#[$about])*
        $sight struct $name {
            $($flags)*
            /// base directory of all data
            #[argh(option, arg_name = "directory")]
            data_dir: Option<std::path::PathBuf>,
            /// the Unix socket
            #[argh(option, arg_name = "path")]
            socket: Option<std::path::PathBuf>,
            /// the machine's relay instead of the project's
            #[argh(switch)]
            global: bool,
        }
    };
    ([folder] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        $(#[$about])*
        $sight struct $name {
            $($flags)*
            /// base directory of all data
            #[argh(option, arg_name = "directory")]
            data_dir: Option<std::path::PathBuf>,
            /// the machine's relay instead of the project's
            #[argh(switch)]
            global: bool,
        }
    };
}
pub(super) use sharing;
