//! Everything is killed under load: the file reopens, its log and the file system's journal are replayed, and nothing
//! that was acknowledged as durable is lost.

use crate::assets::{Assets, run_for_code};
use crate::console::Acknowledged;
use crate::disk::{
    check_file_system, content, extract, godwit, in_words, new_root_disk, prove_sound, replay_journal, verify,
};
use crate::machine::{Attach, Machine, PATIENCE};

/// After so many acknowledgements in each round: early, while all is allocated for the first time; later, when old
/// segments are deleted and trimmed.
const ROUNDS: [u64; 2] = [60, 600];

fn nothing_acknowledged_is_lost_when_everything_is_killed(attach: Attach) {
    let Some(assets) = Assets::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = new_root_disk(&assets, dir.path());
    let mut acknowledged = Acknowledged::new();
    for (round, count) in ROUNDS.into_iter().enumerate() {
        let mut machine = Machine::start(&assets, &disk, attach, "godwit.job=load");
        machine.console.wait_for("load: running", PATIENCE);
        machine.console.wait_for_acknowledgements(count, PATIENCE);
        let console = machine.kill_everything();
        console.assert_no_error();
        acknowledged = console.acknowledged;

        // A log that waits for its replay is no damage.
        let (code, said) = run_for_code(godwit().args(["disk", "check"]).arg(&disk));
        assert_eq!(code, Some(0), "round {round}: godwit disk check: {said}");
        let raw = content(&disk);
        replay_journal(&raw);
        check_file_system(&raw);
        let load = extract(&raw, "/data/load", &dir.path().join(format!("extracted-{round}")));
        verify(&assets, &load, &acknowledged);
    }

    // The guest finds the same, and leaves the file in order.
    let parameters = format!("godwit.job=verify godwit.acknowledged={}", in_words(&acknowledged).join(","));
    let (status, console) = Machine::start(&assets, &disk, attach, &parameters).wait();
    assert!(status.success(), "{status}");
    console.assert_no_error();
    assert!(console.has_seen("the journal was replayed"), "{console}");
    assert!(console.has_seen("verify: all"), "{console}");
    prove_sound(&disk);
}

#[test]
fn nothing_acknowledged_over_vhost_user_is_lost_when_everything_is_killed_under_load() {
    nothing_acknowledged_is_lost_when_everything_is_killed(Attach::VhostUserBlk);
}

#[test]
fn nothing_acknowledged_over_nbd_is_lost_when_everything_is_killed_under_load() {
    nothing_acknowledged_is_lost_when_everything_is_killed(Attach::Nbd);
}
