//! The command line as a whole: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::Exit;
use crate::report::Form;
use crate::{disk, serve, tour, vm};

/// The disk and mobility layer for virtual machines on stock QEMU.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, propagate_version = true)]
pub(crate) struct Cli {
    /// Answer with JSON on standard output.
    #[arg(long, global = true)]
    json: bool,

    /// Log more on standard error; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, look at and check disk images.
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Serve one disk over NBD and vhost-user-blk until interrupted.
    Serve(serve::ServeArgs),
    /// Run virtual machines.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Show on this machine what Godwit does, with a real guest.
    Tour(tour::TourArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    log_to_stderr(cli.verbose);
    let form = if cli.json { Form::Json } else { Form::Text };
    match dispatch(cli.command, form) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("godwit: {error:#}");
            Exit::Failed.into()
        }
    }
}

fn dispatch(command: Command, form: Form) -> anyhow::Result<Exit> {
    match command {
        Command::Disk(command) => disk::run(command, form),
        Command::Serve(args) => serve::run(args, form),
        Command::Vm(command) => vm::run(command, form),
        Command::Tour(args) => tour::run(args, form),
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "godwit", &mut std::io::stdout());
            Ok(Exit::Done)
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = ["warn", "info", "debug"].get(usize::from(verbose)).unwrap_or(&"trace");
    let filter = tracing_subscriber::EnvFilter::try_from_env("GODWIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
