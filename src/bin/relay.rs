//! `relay`.
fn main() -> std::process::ExitCode {
    agent_relay::cli::main()
}
