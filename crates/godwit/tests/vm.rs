//! What `godwit vm run` says when a machine cannot be started. Machines that run are in `guest/`.

use std::process::{Command, Stdio};

fn refusal(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(["vm", "run"]).args(args).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Whether QEMU is there; says so if not.
fn qemu_is_there() -> bool {
    let there = qemu::Version::of("qemu-system-x86_64".as_ref()).is_ok();
    assert!(there || std::env::var_os("GODWIT_REQUIRE_GUEST").is_none(), "qemu is required");
    if !there {
        eprintln!("skipped: there is no qemu");
    }
    there
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for args in [
        &["--memory", "512M"][..],
        &["--disk", "a.vhdx,shiny"],
        &["--disk", "a.vhdx", "--cpus", "0"],
        &["--disk", "a.vhdx", "--accel", "xen"],
        &["--disk", "a.vhdx", "--initrd", "i"],
    ] {
        let (code, said) = refusal(args);
        assert_eq!(code, Some(64), "{args:?}: {said}");
    }
}

#[test]
fn standard_output_is_not_promised_twice() {
    let (code, said) = refusal(&["--disk", "a.vhdx", "--json", "--console", "stdio"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("--json and --console stdio"), "{said}");
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    if !qemu_is_there() {
        return;
    }
    let (code, said) = refusal(&["--disk", "/nonexistent/a.vhdx", "--accel", "tcg"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("/nonexistent/a.vhdx") && said.contains("No such file"), "{said}");
}

#[test]
fn a_qemu_that_is_not_there_is_named() {
    let (code, said) = refusal(&["--disk", "a.vhdx", "--accel", "tcg", "--qemu", "/nonexistent/qemu"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("/nonexistent/qemu"), "{said}");
}

#[test]
fn memory_that_the_host_does_not_have_is_refused_before_the_start() {
    if !qemu_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("a.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let (code, said) = refusal(&["--disk", disk.to_str().unwrap(), "--accel", "tcg", "--memory", "1P"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("has room for"), "{said}");
}
