//! What keeps the secrets of this process inside it: no core dump, no other process of the same user that looks in.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps and tracing of this process by its own user, and hides its environment from them (prctl(2),
/// PR_SET_DUMPABLE; proc(5)). What the kernel refuses is said and nothing more: the daemon serves all the same.
pub(super) fn keep_secrets_inside() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "this process may be dumped and traced by its own user");
    }
    // A crash handler that is a pipe ignores the flag above where fs.suid_dumpable says so, but not this.
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
}
