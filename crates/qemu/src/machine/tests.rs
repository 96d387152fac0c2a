//! Command lines, as QEMU would see them.

use super::*;

const DEBIAN_12: Version = Version { major: 7, minor: 2 };
const DEBIAN_13: Version = Version { major: 10, minor: 0 };

fn machine() -> Machine {
    Machine {
        name: "one".into(),
        kind: MachineKind::Q35,
        accel: Accel::Tcg,
        cpus: 2,
        memory: Memory::new(256 << 20),
        boot: None,
        disks: Vec::new(),
        console: Console::None,
        qmp: None,
        extra: Vec::new(),
    }
}

fn vhost_user(id: &str) -> Disk {
    let attachment = Attachment::VhostUserBlk { socket: "/run/a,b".into(), queues: 2 };
    Disk { id: id.into(), attachment, read_only: false }
}

fn line(machine: &Machine, version: Version) -> String {
    let args = machine.arguments(version, 5).unwrap();
    args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn memory_is_a_shared_file_so_that_others_can_map_it() {
    let line = line(&machine(), DEBIAN_12);
    assert!(line.contains("-machine q35,memory-backend=ram "), "{line}");
    let memory = "-object memory-backend-file,id=ram,size=268435456B,share=on,mem-path=/dev/shm";
    assert!(line.contains(memory), "{line}");
}

#[test]
fn commas_in_paths_do_not_end_an_option() {
    let mut machine = machine();
    machine.disks.push(vhost_user("disk0"));
    machine.console = Console::Socket { path: "/c,".into(), log: Some("/l,".into()) };
    let line = line(&machine, DEBIAN_12);
    assert!(line.contains("-chardev socket,id=disk0-server,reconnect=1,path=/run/a,,b "), "{line}");
    assert!(line.contains("path=/c,,,logfile=/l,, "), "{line}");
}

#[test]
fn newer_versions_are_told_the_reconnect_time_in_milliseconds() {
    let mut machine = machine();
    machine.disks.push(vhost_user("disk0"));
    assert!(line(&machine, DEBIAN_13).contains(",reconnect-ms=1000,"));
}

#[test]
fn devices_have_the_name_of_their_board() {
    let mut machine = machine();
    machine.disks.push(vhost_user("a"));
    let attachment = Attachment::Nbd { socket: "/n".into(), export: "x,y".into() };
    machine.disks.push(Disk { id: "b".into(), attachment, read_only: true });
    let q35 = line(&machine, DEBIAN_12);
    assert!(q35.contains("-device vhost-user-blk-pci,id=a,chardev=a-server,num-queues=2"), "{q35}");
    assert!(q35.contains("read-only=on"), "{q35}");
    assert!(q35.contains("server.path=/n,export=x,,y -device virtio-blk-pci,id=b,drive=b-node"), "{q35}");
    machine.kind = MachineKind::Microvm;
    let microvm = line(&machine, DEBIAN_12);
    assert!(microvm.contains("-device vhost-user-blk,id=a,"), "{microvm}");
    assert!(microvm.contains("-device virtio-blk-device,id=b,"), "{microvm}");
}

#[test]
fn a_disk_name_that_would_change_the_command_line_is_refused() {
    for id in ["", "a,b", "a b", "ä"] {
        let mut machine = machine();
        machine.disks.push(vhost_user(id));
        assert!(matches!(machine.arguments(DEBIAN_12, 5), Err(MachineError::Id(_))), "{id:?}");
    }
}

#[test]
fn memory_that_does_not_fit_is_told_before_the_start() {
    let error = Memory::new(1 << 60).check_room().unwrap_err();
    assert!(error.to_string().contains("/dev/shm has room for"), "{error}");
    let nowhere = Memory { bytes: 1, path: "/nonexistent".into() };
    assert!(matches!(nowhere.check_room(), Err(MachineError::Memory { .. })));
}
