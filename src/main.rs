//! The `skep` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    skep::cli::main()
}
