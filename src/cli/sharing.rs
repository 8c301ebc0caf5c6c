//! Flags that several commands have in common, each declared once. Knows what a flag is called and what its help says; what it
//! means is said where it is used.

/// Declares a command with groups of flags beside its own: `filter` (which stored messages; stands first), `folder` (which
/// data, daemon or not), `place` (which daemon of this machine), `reach` (which daemon anywhere; see
/// [`Reach`](super::reach::Reach)). Larger groups consist of smaller ones.
macro_rules! sharing {
    ([] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        $(#[$about])*
        $sight struct $name { $($flags)* }
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
    ([folder $($group:ident)*] $($command:tt)*) => {
        crate::cli::sharing::sharing! { [base machine $($group)*] $($command)* }
    };
    ([place $($group:ident)*] $($command:tt)*) => {
        crate::cli::sharing::sharing! { [base socket machine $($group)*] $($command)* }
    };
    // What these consist of.
    ([base $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [$($group)*]
            $(#[$about])*
            $sight struct $name {
                $($flags)*
                /// base directory of all data
                #[argh(option, arg_name = "directory")]
                data_dir: Option<std::path::PathBuf>,
            }
        }
    };
    ([socket $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [$($group)*]
            $(#[$about])*
            $sight struct $name {
                $($flags)*
                /// the Unix socket
                #[argh(option, arg_name = "path")]
                socket: Option<std::path::PathBuf>,
            }
        }
    };
    ([machine $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [$($group)*]
            $(#[$about])*
            $sight struct $name {
                $($flags)*
                /// the machine's relay instead of the project's
                #[argh(switch)]
                global: bool,
            }
        }
    };
    ([reach $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [place remote $($group)*]
            $(#[$about])*
            $sight struct $name { $($flags)* }
        }

        impl $name {
            /// The daemon that its flags mean.
            fn reach(&self) -> Result<crate::cli::reach::Reach, crate::cli::Failure> {
                crate::cli::reach::Flags {
                    data_dir: self.data_dir.as_deref(),
                    socket: self.socket.as_deref(),
                    global: self.global,
                    connect: self.connect.as_deref(),
                    ca: self.ca.as_deref(),
                    client_cert: self.client_cert.as_deref(),
                    client_key: self.client_key.as_deref(),
                    server_name: self.server_name.as_deref(),
                }
                .reach()
            }
        }
    };
    // The part of `reach` that is no `place`.
    ([remote $($group:ident)*] $(#[$about:meta])* $sight:vis struct $name:ident { $($flags:tt)* }) => {
        crate::cli::sharing::sharing! {
            [$($group)*]
            $(#[$about])*
            $sight struct $name {
                $($flags)*
                /// a relay elsewhere: host:port (with TLS, unless that is this machine) or a socket's path
                #[argh(option, arg_name = "address")]
                connect: Option<String>,
                /// TLS, believing these authorities (PEM; default: the system's)
                #[argh(option, arg_name = "file")]
                ca: Option<std::path::PathBuf>,
                /// TLS, showing this certificate (PEM)
                #[argh(option, arg_name = "file")]
                client_cert: Option<std::path::PathBuf>,
                /// its private key (PEM)
                #[argh(option, arg_name = "file")]
                client_key: Option<std::path::PathBuf>,
                /// TLS, and the name in the relay's certificate where it is not the host of --connect
                #[argh(option, arg_name = "name")]
                server_name: Option<String>,
            }
        }
    };
}
pub(super) use sharing;
