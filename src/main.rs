//! The program: arguments go to [`snapvol::cli`], its answer becomes the exit code.

fn main() -> std::process::ExitCode {
    snapvol::cli::main()
}
