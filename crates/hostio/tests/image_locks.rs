//! Who may open an image beside whom, held against QEMU's own programs.
//!
//! The images are qcow2, because QEMU's programs forbid others nothing on a raw image: two of them may write one.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use block::{BlockDev, ErrorKind};
use hostio::{HostFile, Lock, OpenOptions, block_on};

/// An image of 1 MiB, on disk and in memory.
fn images() -> Vec<(tempfile::TempDir, PathBuf)> {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()];
    let with_image = |directory: tempfile::TempDir| {
        let path = directory.path().join("image");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        (directory, path)
    };
    directories.map(with_image).into()
}

fn read_only() -> OpenOptions {
    OpenOptions::default()
}

fn read_write() -> OpenOptions {
    OpenOptions::read_write()
}

/// Images that QEMU made; none, with a word why, where its programs are not installed.
fn qemu_images() -> Vec<(tempfile::TempDir, PathBuf)> {
    let mut images = images();
    for (_, path) in &images {
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg("1M").status();
        let Ok(made) = made else {
            eprintln!("skipped: qemu-img is not installed");
            images.clear();
            break;
        };
        assert!(made.success());
    }
    images
}

/// A qemu-io that has the image open and waits.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .args(flags)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "read 0 512").unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("read 512/512")), "qemu-io did not open the image");
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Runs a program of QEMU's to its end; gives what it complained about, if it failed.
fn complaint_of(program: &str, arguments: &[&str], path: &Path) -> Option<String> {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_writer_is_alone_and_readers_share() {
    for (_directory, path) in images() {
        let first = HostFile::open(&path, &read_only()).unwrap();
        let second = HostFile::open(&path, &read_only()).unwrap();
        let refused = HostFile::open(&path, &read_write()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        drop((first, second));

        let writer = HostFile::open(&path, &read_write()).unwrap();
        for options in [read_only(), read_write()] {
            let refused = HostFile::open(&path, &options).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Busy);
            let expected = format!("this process itself ({}) has it open for writing", std::process::id());
            assert!(refused.chain().contains(&expected), "{refused:?}");
        }
        HostFile::open(&path, &OpenOptions { lock: Lock::None, ..read_only() }).unwrap();

        block_on(writer.close()).unwrap();
        HostFile::open(&path, &read_write()).expect("close gives the lock back while the object lives");
        drop(writer);
    }
}

#[test]
fn qemu_is_kept_from_what_we_write() {
    for (_directory, path) in qemu_images() {
        let writer = HostFile::open(&path, &read_write()).unwrap();
        let complaint = complaint_of("qemu-img", &["info"], &path).expect("qemu-img reads what we write");
        assert!(complaint.contains("Failed to get shared \"write\" lock"), "{complaint}");
        let complaint = complaint_of("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path);
        assert!(complaint.expect("qemu-io writes what we write").contains("lock"));
        assert_eq!(complaint_of("qemu-img", &["info", "-U"], &path), None, "who insists may look");
        drop(writer);
        assert_eq!(complaint_of("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path), None);
    }
}

#[test]
fn qemu_reads_beside_us_but_does_not_write_what_we_read() {
    for (_directory, path) in qemu_images() {
        let _reader = HostFile::open(&path, &read_only()).unwrap();
        assert_eq!(complaint_of("qemu-img", &["info"], &path), None);
        assert_eq!(complaint_of("qemu-io", &["-r", "-f", "qcow2", "-c", "read 0 512"], &path), None);
        let complaint = complaint_of("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path);
        assert!(complaint.expect("qemu-io writes what we read").contains("Failed to get \"write\" lock"));
    }
}

#[test]
fn we_are_kept_from_what_qemu_writes_and_told_who_it_is() {
    for (_directory, path) in qemu_images() {
        let qemu = QemuIo::open(&path, &[]);
        for options in [read_only(), read_write()] {
            let refused = HostFile::open(&path, &options).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Busy);
            let text = refused.chain();
            let expected = format!("process {} (qemu-io -f qcow2 {})", qemu.0.id(), path.display());
            assert!(text.contains(&expected), "{text}");
            assert!(text.contains("has it open for writing"), "{text}");
        }
        drop(qemu);
        HostFile::open(&path, &read_write()).unwrap();
    }
}

#[test]
fn we_read_beside_a_reading_qemu_but_do_not_write_what_it_reads() {
    for (_directory, path) in qemu_images() {
        let qemu = QemuIo::open(&path, &["-r"]);
        HostFile::open(&path, &read_only()).unwrap();
        let refused = HostFile::open(&path, &read_write()).unwrap_err();
        let expected = format!("process {} (qemu-io -f qcow2 -r", qemu.0.id());
        assert!(refused.chain().contains(&expected), "{refused:?}");
        assert!(refused.chain().contains("lets nobody else write"), "{refused:?}");
    }
}

#[test]
fn a_created_file_is_locked_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new");
    let _writer = HostFile::create(&path, 4096, &OpenOptions::default()).unwrap();
    assert_eq!(HostFile::open(&path, &read_only()).unwrap_err().kind(), ErrorKind::Busy);
}
