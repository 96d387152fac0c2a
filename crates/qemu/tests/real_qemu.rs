//! The client and the process against the QEMU that is installed. Without one these tests say so and pass; where they
//! must run (`GODWIT_REQUIRE_GUEST`), they fail.

use std::time::Duration;

use qemu::{Accel, Console, Machine, MachineKind, Memory, QmpError, StartError, Stopped, Vm};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

fn machine(kind: MachineKind) -> Option<Machine> {
    if let Err(why) = qemu::Version::of("qemu-system-x86_64".as_ref()) {
        assert!(std::env::var_os("GODWIT_REQUIRE_GUEST").is_none(), "qemu is required: {why}");
        eprintln!("skipped: {why}");
        return None;
    }
    Some(Machine {
        name: "test, with a comma".into(),
        kind,
        accel: Accel::Tcg,
        cpus: 1,
        memory: Memory::new(64 << 20),
        boot: None,
        disks: Vec::new(),
        console: Console::None,
        qmp: None,
        extra: Vec::new(),
    })
}

#[test]
fn a_machine_starts_answers_and_quits() {
    for kind in [MachineKind::Q35, MachineKind::Microvm] {
        let Some(machine) = machine(kind) else { return };
        let mut vm = Vm::start(&machine, None).unwrap();
        let qmp = vm.qmp();
        assert_eq!(qmp.execute("query-status", json!({}), SOON).unwrap()["running"], true);
        qmp.execute("stop", json!({}), SOON).unwrap();
        qmp.wait_event(&["STOP"], SOON).unwrap();
        let error = qmp.execute("device_del", json!({ "id": "nothing" }), SOON).unwrap_err();
        assert!(matches!(&error, QmpError::Refused { class, .. } if class == "DeviceNotFound"), "{error}");
        let (how, status) = vm.quit().unwrap();
        assert_eq!((how, status.success()), (Stopped::ByQuit, true));
    }
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_by_quit() {
    let Some(machine) = machine(MachineKind::Q35) else { return };
    // The firmware knows no power button.
    let vm = Vm::start(&machine, None).unwrap();
    assert_eq!(vm.stop(Duration::from_millis(200)).unwrap().0, Stopped::ByQuit);
}

#[test]
fn the_memory_is_a_shared_mapping_of_a_file_without_a_name() {
    let Some(machine) = machine(MachineKind::Q35) else { return };
    let mut vm = Vm::start(&machine, None).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vm.child().pid())).unwrap();
    let ram = maps.lines().find(|line| line.contains("/dev/shm/")).unwrap();
    assert!(ram.contains(" rw-s ") && ram.ends_with("(deleted)"), "{ram}");
}

#[test]
fn a_command_line_that_qemu_refuses_is_told_in_its_words() {
    let Some(mut machine) = machine(MachineKind::Q35) else { return };
    machine.extra = vec!["-device".into(), "no-such-device".into()];
    match Vm::start(&machine, None) {
        Err(StartError::Ended { said, .. }) => assert!(said.contains("no-such-device"), "{said}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_monitor_is_there_for_others() {
    let Some(mut machine) = machine(MachineKind::Q35) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    machine.qmp = Some(path.clone());
    let mut vm = Vm::start(&machine, None).unwrap();
    let mut second = qemu::Qmp::connect(&path).unwrap();
    second.execute("stop", json!({}), SOON).unwrap();
    vm.qmp().wait_event(&["STOP"], SOON).unwrap();
}
