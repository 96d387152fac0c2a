//! What runs guests here: the processor's virtualization, or translation.

mod image;

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use crate::{Child, MachineKind};

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor runs them, through Linux's KVM.
    Kvm,
    /// QEMU translates them. Slower by an order of magnitude or two, and works everywhere.
    Tcg,
}

/// Firmware is at least this large.
const FIRMWARE_BYTES: usize = 64 << 10;
/// What the probe writes to the debug exit port; QEMU makes the exit code of it.
const PROBE_VALUE: i32 = 0x2a;
/// The probe takes about 0.1 s where instructions run or are translated; where they are emulated one by one in the
/// kernel, as with some nested KVMs, it would take half a minute, and a guest would take hours.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

impl Accel {
    /// Finds out whether `self` runs guests here, by running one: firmware that enters long mode, works, and reports.
    ///
    /// That `/dev/kvm` is there, can be opened, and answers says little: it does all this in nested machines where no
    /// real guest gets past its boot loader, and where the processor model for guests is refused only when it starts.
    ///
    /// # Errors
    /// A sentence on why guests cannot be run this way.
    pub fn probe(self, binary: &Path, kind: MachineKind) -> Result<(), String> {
        let mut firmware =
            tempfile::NamedTempFile::new().map_err(|error| format!("temporary file: {error}"))?;
        firmware.write_all(&image()).map_err(|error| format!("write the probe's firmware: {error}"))?;
        let mut command = Command::new(binary);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16M"])
            .args(["-machine", kind.name(), "-accel", self.name(), "-cpu", self.cpu_model()])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
            .arg(firmware.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child =
            Child::spawn(&mut command, &[]).map_err(|error| format!("run {}: {error}", binary.display()))?;
        let status = child.wait_timeout(PROBE_TIMEOUT).map_err(|error| format!("wait for qemu: {error}"))?;
        let Some(status) = status else {
            return Err(format!(
                "a guest that needs a tenth of a second has not ended after {PROBE_TIMEOUT:?}"
            ));
        };
        // isa-debug-exit ends QEMU with (value << 1) | 1.
        if status.code() == Some(PROBE_VALUE << 1 | 1) {
            return Ok(());
        }
        let mut said = Vec::new();
        if let Some(stderr) = child.process().stderr.take() {
            let _ = stderr.take(4096).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        Err(format!("qemu ended with {status}: {}", said.lines().next().unwrap_or("it said nothing").trim()))
    }

    /// KVM where it works, TCG where it does not, and then why not.
    pub fn best(binary: &Path, kind: MachineKind) -> (Self, Option<String>) {
        match Self::Kvm.probe(binary, kind) {
            Ok(()) => (Self::Kvm, None),
            Err(why) => (Self::Tcg, Some(why)),
        }
    }

    /// The argument of QEMU's `-accel`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The processor model with the most features that this accelerator has.
    pub fn cpu_model(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("{text:?} is not an accelerator; there are kvm and tcg")),
        }
    }
}

/// The firmware: halt instructions up to the code at the end.
fn image() -> Vec<u8> {
    let mut image = vec![0xf4; FIRMWARE_BYTES - image::TAIL.len()];
    image.extend_from_slice(&image::TAIL);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_what_the_assembler_makes_of_the_source() {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/accel/probe.S");
        let run = |program: &str, args: &[&str]| {
            Command::new(program).args(args).current_dir(&dir).status().is_ok_and(|status| status.success())
        };
        if !run("as", &["--64", "-o", "probe.o", source]) {
            eprintln!("skipped: there is no assembler");
            return;
        }
        assert!(run("objcopy", &["-O", "binary", "-j", ".text", "probe.o", "probe.raw"]));
        assert_eq!(std::fs::read(dir.path().join("probe.raw")).unwrap(), image::TAIL);
    }

    #[test]
    fn translation_runs_guests_wherever_qemu_is() {
        let binary = Path::new("qemu-system-x86_64");
        if crate::Version::of(binary).is_err() {
            eprintln!("skipped: there is no qemu");
            return;
        }
        for kind in [MachineKind::Q35, MachineKind::Microvm] {
            Accel::Tcg.probe(binary, kind).unwrap();
        }
    }

    #[test]
    fn a_program_that_is_not_there_or_not_qemu_is_told() {
        let error = Accel::Tcg.probe(Path::new("/nonexistent/qemu"), MachineKind::Q35).unwrap_err();
        assert!(error.contains("/nonexistent/qemu"), "{error}");
        let error = Accel::Tcg.probe(Path::new("false"), MachineKind::Q35).unwrap_err();
        assert!(error.contains("exit status: 1"), "{error}");
    }
}
