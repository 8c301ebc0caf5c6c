//! `agent-relay`: the name the npm package installs; the same program.
fn main() -> std::process::ExitCode {
    agent_relay::cli::main()
}
