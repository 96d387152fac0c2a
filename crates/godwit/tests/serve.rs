//! `godwit serve` as its users meet it: the program, its output, signals, and the clients of both protocols' sockets.
//!
//! Tests whose client is not installed say so and pass.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

const GODWIT: &str = env!("CARGO_BIN_EXE_godwit");
const MIB: usize = 1 << 20;

/// A running server, which is killed if the test ends before it does.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server and waits until it says that clients can connect; gives what it says, too.
    fn start(args: &[&str]) -> (Self, String) {
        let mut command = Command::new(GODWIT);
        command.arg("serve").args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        Self::wait(command)
    }

    fn wait(mut command: Command) -> (Self, String) {
        let mut child = command.spawn().expect("the program can be started");
        let mut output = BufReader::new(child.stdout.take().expect("it has an output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its output can be read");
        (Self { child, output }, line)
    }

    /// Sends a signal and waits for the end; gives the status and the rest of the output.
    fn end(mut self, signal: &str) -> (ExitStatus, String) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill is there");
        assert!(sent.success());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("its output can be read");
        (self.child.wait().expect("it can be waited for"), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program that has to succeed; `None` if it is not installed.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    if !std::env::split_paths(&path).any(|directory| directory.join(program).is_file()) {
        eprintln!("skipped: {program} is not installed");
        return None;
    }
    let output =
        Command::new("timeout").arg("120").arg(program).args(args).output().expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

fn godwit(args: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(GODWIT).args(args).output().expect("the program can be started");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().expect("the directory's name is UTF-8").to_owned()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).expect("the file can be written");
        self.name(name)
    }
}

fn uri(socket: &str) -> String {
    format!("nbd+unix:///?socket={socket}")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn a_raw_file_is_served_until_sigterm_and_its_socket_is_removed() {
    let place = Place::new();
    let (disk, socket, copy) =
        (place.file("disk.raw", &pattern(4 * MIB)), place.name("s"), place.name("copy"));
    let (server, line) = Server::start(&[&disk, "--nbd", &socket]);
    assert_eq!(line, format!("serving {disk} (raw) on {}\n", uri(&socket)));
    let copied = run("nbdcopy", &[&uri(&socket), &copy]).is_some();
    let (status, rest) = server.end("TERM");
    assert_eq!((status.code(), &rest[..]), (Some(0), "SIGTERM: closing the disk\nclosed\n"));
    assert!(!exists(&place.path("s")));
    assert!(!copied || std::fs::read(copy).unwrap() == pattern(4 * MIB));
}

#[test]
fn what_clients_wrote_into_a_vhdx_is_there_for_everybody_afterwards() {
    let place = Place::new();
    let (disk, socket) = (place.name("disk.vhdx"), place.name("s"));
    let source = place.file("source.raw", &pattern(20 * MIB));
    assert!(godwit(&["disk", "create", &disk, "64M"]).0.success());
    let (server, line) = Server::start(&[&disk, "--json", "--nbd", &socket]);
    let ready: serde_json::Value = serde_json::from_str(&line).expect("each line is one document");
    assert_eq!((&ready["event"], &ready["format"]), (&"ready".into(), &"vhdx".into()));
    assert_eq!((&ready["virtual_size"], &ready["nbd"][0]), (&(64 * MIB).into(), &uri(&socket).into()));
    let Some(_) = run("nbdcopy", &["--flush", "--connections=4", &source, &uri(&socket)]) else { return };
    let map = run("nbdinfo", &["--map=godwit:state", &uri(&socket)]).expect("nbdinfo comes with nbdcopy");
    let states: Vec<_> = map.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(states, ["6", "0"], "written blocks are present, others are not: {map}");
    let (status, rest) = server.end("INT");
    assert!(status.success());
    assert_eq!(rest, "{\"event\":\"stopping\",\"signal\":\"SIGINT\"}\n{\"event\":\"stopped\"}\n");
    assert!(godwit(&["disk", "check", &disk]).0.success());
    run("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", &source, &disk]);
}

#[test]
fn a_trim_over_nbd_unmaps_and_frees_the_blocks_of_a_vhdx() {
    let place = Place::new();
    let (disk, socket) = (place.name("disk.vhdx"), place.name("s"));
    assert!(godwit(&["disk", "create", &disk, "64M", "--block-size", "1M"]).0.success());
    let (server, _) = Server::start(&[&disk, "--nbd", &socket]);
    let io = [
        "-f",
        "raw",
        "--discard=unmap",
        "-c",
        "write -P 7 0 8M",
        "-c",
        "discard 2M 4M",
        "-c",
        "read -P 0 2M 4M",
    ];
    let Some(text) = run("qemu-io", &[&io[..], &[&uri(&socket)]].concat()) else { return };
    assert!(!text.contains("verification failed"), "{text}");
    if let Some(map) = run("nbdinfo", &["--map=godwit:state", &uri(&socket)]) {
        let lines: Vec<_> = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[1][..3], ["2097152", "4194304", "3"], "unmapped: {map}");
    }
    assert!(server.end("TERM").0.success());
    assert!(godwit(&["disk", "check", &disk]).0.success());
}

#[test]
fn both_front_ends_are_served_at_once() {
    let place = Place::new();
    let disk = place.file("disk.raw", &pattern(MIB));
    let (nbd, vhost) = (place.name("n"), place.name("v"));
    let (server, line) =
        Server::start(&[&disk, "--nbd", &nbd, "--nbd", "nbd://127.0.0.1:0/x", "--vhost-user-blk", &vhost]);
    assert!(line.contains("nbd://127.0.0.1:") && line.ends_with(&format!("/x and {vhost}\n")), "{line}");
    std::os::unix::net::UnixStream::connect(&vhost).expect("the vhost-user socket is listened on");
    run("nbdinfo", &[&uri(&nbd)]);
    assert!(server.end("TERM").0.success());
    assert!(!exists(&place.path("n")) && !exists(&place.path("v")));
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let place = Place::new();
    let (disk, socket) = (place.file("disk.raw", &pattern(MIB)), place.name("s"));
    let (server, line) = Server::start(&[&disk, "--read-only", "--nbd", &socket]);
    assert!(line.contains("(raw, read-only)"), "{line}");
    if let Some(info) = run("nbdinfo", &["--json", &uri(&socket)]) {
        assert!(info.contains("\"is_read_only\": true"), "{info}");
    }
    assert!(server.end("TERM").0.success());
    assert!(std::fs::read(disk).unwrap() == pattern(MIB));
}

#[test]
fn the_service_manager_is_told_when_the_disk_is_served_and_when_it_is_closed() {
    let place = Place::new();
    let (disk, socket) = (place.file("disk.raw", &pattern(MIB)), place.name("s"));
    let manager = UnixDatagram::bind(place.path("notify")).expect("a socket can be bound");
    let mut command = Command::new(GODWIT);
    command.args(["serve", &disk, "--nbd", &socket]).env("NOTIFY_SOCKET", place.path("notify"));
    let (server, _) = Server::wait({
        command.stdout(Stdio::piped());
        command
    });
    let mut heard = [0; 100];
    let count = manager.recv(&mut heard).expect("the server tells");
    assert!(heard[..count].starts_with(b"READY=1"));
    assert!(server.end("TERM").0.success());
    let count = manager.recv(&mut heard).expect("the server tells");
    assert!(heard[..count].starts_with(b"STOPPING=1"));
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let place = Place::new();
    let (disk, socket) = (place.file("disk.raw", &pattern(MIB)), place.name("s"));
    let refused = |args: &[&str], reason: &str| {
        let (status, text) = godwit(&[&["serve"], args].concat());
        assert!(!status.success() && text.contains(reason), "{args:?}: {status}: {text}");
        assert!(!exists(&place.path("s")), "no socket is left");
    };
    refused(&[&disk], "say where to serve the disk");
    refused(&[&disk, "--nbd", "http://x"], "nbd+unix:///?socket=");
    refused(&[&disk, "--nbd", &format!("nbds+unix:///?socket={socket}")], "--tls-certificates");
    refused(&[&place.name("missing.raw"), "--nbd", &socket], "missing.raw");
    refused(&[&disk, "--format", "vhdx", "--nbd", &socket], "disk.raw");
    let nowhere = place.name("no/such/directory/s");
    refused(&[&disk, "--nbd", &nowhere], "no/such/directory");
}

#[test]
fn a_disk_that_is_served_cannot_be_served_by_another() {
    let place = Place::new();
    let disk = place.file("disk.raw", &pattern(MIB));
    let (server, _) = Server::start(&[&disk, "--nbd", &place.name("s")]);
    let (status, text) = godwit(&["serve", &disk, "--nbd", &place.name("t")]);
    assert!(!status.success() && text.contains("disk.raw"), "{text}");
    assert!(server.end("TERM").0.success());
}

#[test]
fn a_client_that_starts_its_server_is_served_on_the_socket_it_hands_over() {
    let place = Place::new();
    let (disk, copy) = (place.file("disk.raw", &pattern(MIB)), place.name("copy"));
    let server = ["[", GODWIT, "serve", "--read-only", &disk, "]"];
    if run("nbdcopy", &["--", server[0], server[1], server[2], server[3], server[4], server[5], &copy])
        .is_some()
    {
        assert!(std::fs::read(copy).unwrap() == pattern(MIB));
    }
}
