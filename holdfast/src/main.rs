//! The program: command line and composition.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 the host lacks something (named, with the
//! line that mends it).

mod bench;
mod check_host;
mod cli;
mod config;
mod control;
mod demo;
mod gate;
mod keys;
mod memory;
mod run;
mod status;
mod treatment;
mod wire;
mod wire_emulator;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    cli::start_log(arguments.verbose);
    match cli::dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("holdfast: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
