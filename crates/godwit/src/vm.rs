//! `godwit vm`: virtual machines on stock QEMU.

mod args;
mod disk_server;
mod event;
mod foreground;
mod runtime_dir;
mod terminal;

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Run one virtual machine in the foreground, its disks served by processes of their own.
    ///
    /// Ctrl-C presses the guest's power button; a second Ctrl-C ends it at once. A disk server that dies is started
    /// again, and the guest does not notice.
    Run(args::RunArgs),
}

pub(crate) fn run(command: VmCommand, form: Form) -> anyhow::Result<Exit> {
    match command {
        VmCommand::Run(args) => foreground::run(args, form),
    }
}
