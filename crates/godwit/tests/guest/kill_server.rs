//! The disk's server is killed under load and started again; the guest sees no error.

use crate::assets::Assets;
use crate::disk::{extract, new_root_disk, prove_sound, verify};
use crate::machine::{Attach, Machine, PATIENCE};

const KILLS: usize = 3;
/// Acknowledgements between kills: the load is well under way each time.
const ACKNOWLEDGEMENTS: u64 = 100;

fn the_guest_sees_no_error_when_the_server_is_killed(attach: Attach) {
    let Some(assets) = Assets::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = new_root_disk(&assets, dir.path());
    let mut machine = Machine::start(&assets, &disk, attach, "godwit.job=load");
    machine.console.wait_for("load: running", PATIENCE);
    for _ in 0..KILLS {
        machine.console.wait_for_acknowledgements(ACKNOWLEDGEMENTS, PATIENCE);
        machine.kill_server();
    }
    machine.console.wait_for_acknowledgements(ACKNOWLEDGEMENTS, PATIENCE);
    machine.console.type_line("stop");
    machine.console.wait_for("load: stopped, no error seen", PATIENCE);
    machine.console.wait_for("guest: power off", PATIENCE);
    let (status, console) = machine.wait();
    assert!(status.success(), "{status}");
    console.assert_no_error();

    let content = prove_sound(&disk);
    let load = extract(&content, "/data/load", &dir.path().join("extracted"));
    verify(&assets, &load, &console.acknowledged);
}

#[test]
fn a_server_killed_under_load_comes_back_over_vhost_user_and_no_request_is_lost() {
    the_guest_sees_no_error_when_the_server_is_killed(Attach::VhostUserBlk);
}

#[test]
fn a_server_killed_under_load_comes_back_over_nbd_and_no_request_is_lost() {
    the_guest_sees_no_error_when_the_server_is_killed(Attach::Nbd);
}
