//! The main job: a guest boots from a VHDX file, writes, trims, powers off, and the file is sound.

use std::process::Command;

use crate::assets::{Assets, run};
use crate::disk::{extract, host_bytes, new_root_disk, prove_sound};
use crate::machine::{Attach, Machine, PATIENCE};

/// What the job `write-trim` writes, and what it leaves of that.
const WRITTEN_BYTES: u64 = 64 << 20;
const KEPT_BYTES: u64 = 8 << 20;
/// The file's own structures, the file system's, and blocks of which only a part was trimmed.
const OVERHEAD_BYTES: u64 = 16 << 20;

fn boots_writes_trims_and_leaves_a_sound_file(attach: Attach) {
    let Some(assets) = Assets::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = new_root_disk(&assets, dir.path());
    let before = host_bytes(&disk);

    let mut machine = Machine::start(&assets, &disk, attach, "godwit.job=write-trim godwit.pause=1");
    machine.console.wait_for("guest: paused before the trim", PATIENCE);
    let written = host_bytes(&disk);
    assert!(written >= before + WRITTEN_BYTES, "{before} bytes became {written} though 64 MiB were written");
    machine.console.type_line("");
    machine.console.wait_for("guest: trimmed", PATIENCE);
    machine.console.wait_for("worker: 2 files of 1024 blocks done", PATIENCE);
    machine.console.wait_for("guest: power off", PATIENCE);
    let (status, console) = machine.wait();
    assert!(status.success(), "{status}");
    console.assert_no_error();

    let after = host_bytes(&disk);
    let most = before + KEPT_BYTES + OVERHEAD_BYTES;
    assert!(after <= most, "{written} bytes shrank to {after} only, more than {most}");
    let content = prove_sound(&disk);
    let known = extract(&content, "/data/known", &dir.path().join("extracted"));
    let said = run(Command::new(assets.worker()).arg("check").arg(known).args(["16", "1024"]));
    assert!(said.contains("2 files of 1024 blocks done"), "{said}");

    // What is on the disk is there for the next boot, too.
    let machine = Machine::start(&assets, &disk, attach, "godwit.job=check");
    let (status, console) = machine.wait();
    assert!(status.success() && console.has_seen("2 files of 1024 blocks done"), "{console}");
    assert!(!console.has_seen("the journal was replayed"), "the guest had powered off in order");
}

#[test]
fn a_guest_boots_from_a_vhdx_over_vhost_user_writes_trims_and_leaves_it_sound() {
    boots_writes_trims_and_leaves_a_sound_file(Attach::VhostUserBlk);
}

#[test]
fn a_guest_boots_from_a_vhdx_over_nbd_writes_trims_and_leaves_it_sound() {
    boots_writes_trims_and_leaves_a_sound_file(Attach::Nbd);
}

#[test]
fn an_interrupted_machine_presses_the_power_button_and_the_guest_goes_off_in_order() {
    let Some(assets) = Assets::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = new_root_disk(&assets, dir.path());
    let mut machine = Machine::start(&assets, &disk, Attach::VhostUserBlk, "godwit.job=idle");
    machine.console.wait_for("guest: up", PATIENCE);
    machine.interrupt();
    machine.console.wait_for("guest: the power button was pressed", PATIENCE);
    let (status, console) = machine.wait();
    assert!(status.success(), "{status}");
    console.assert_no_error();
    prove_sound(&disk);
}
