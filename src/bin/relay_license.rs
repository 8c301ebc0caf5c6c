//! `relay-license`: the vendor's side of licences.
fn main() -> std::process::ExitCode {
    agent_relay::vendor::main()
}
