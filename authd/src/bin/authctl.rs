//! The authctl binary.

fn main() -> std::process::ExitCode {
    authd::ctl::main()
}
