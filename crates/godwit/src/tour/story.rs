//! The tour's chapters.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::guest::Guest;
use super::machine::Machine;
use super::shell::Shell;
use crate::disk::size::Size;

const DISK: &str = "root.vhdx";
const CONTENT: &str = "content.raw";
/// What the guest's job writes, and what of it stays.
const WRITTEN_BYTES: u64 = 64 << 20;
const KEPT_BYTES: u64 = 8 << 20;
/// What the file may keep beyond that: the file system's own data, and blocks that it shares with what was deleted.
const OVERHEAD_BYTES: u64 = 16 << 20;

/// Acknowledgements of the guest's load before and after its disk's server is killed.
const ACKNOWLEDGEMENTS: usize = 200;

/// Plays the whole tour.
pub(super) fn tell(shell: &mut Shell<'_>, guest: &Guest, keep: bool) -> anyhow::Result<()> {
    shell.narrator.say(
        "This tour makes a disk file, boots a real Linux guest from it on stock QEMU, and proves that the file is \
         sound afterwards. Lines that begin with $ are commands as you can type them; what they say is indented \
         below them; [ok] marks what was checked, by the tour itself or by programs that know nothing of Godwit.",
    )?;
    create(shell)?;
    fill(shell, guest)?;
    identity(shell)?;
    boot(shell, guest)?;
    kills(shell, guest)?;
    checks(shell, keep)?;
    refusal(shell)
}

fn create(shell: &mut Shell<'_>) -> anyhow::Result<()> {
    shell.narrator.chapter("A thin disk")?;
    shell.narrator.say(
        "A VHDX file is made: to a guest it is a disk of 1 GiB, on this machine it takes almost nothing until \
         something is written. It describes the disk in blocks of 1 MiB, each with a state of its own.",
    )?;
    shell.run(&["godwit", "disk", "create", DISK, "1G", "--block-size", "1M"])?;
    let bytes = shell.host_bytes(DISK)?;
    ensure!(bytes < 16 << 20, "an empty disk takes {bytes} bytes on the host");
    Ok(shell.narrator.proved("an empty disk is thin", &format!("{} on the host", Size::of(bytes)))?)
}

fn fill(shell: &mut Shell<'_>, guest: &Guest) -> anyhow::Result<()> {
    shell.narrator.chapter("A root file system goes in")?;
    shell.narrator.say(&format!(
        "An ext4 file system with a small Linux (made from {}) is copied onto the disk. Godwit serves the disk as a \
         network block device on a socket; the copy is made by QEMU's own tool, which sees a disk like any other.",
        guest.packages
    ))?;
    let root = guest.root.to_str().context("the guest's directory has a name that is no text")?;
    shell.with_server(DISK, &[], |shell, uri| {
        shell.run(&["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", root, uri]).map(drop)
    })?;
    shell.with_server(DISK, &["--read-only"], |shell, uri| {
        shell.run(&["qemu-img", "compare", "-f", "raw", "-F", "raw", root, uri]).map(drop)
    })?;
    let evidence =
        format!("qemu-img compares them equal; the file takes {}", Size::of(shell.host_bytes(DISK)?));
    Ok(shell.narrator.proved("what was written is what is read", &evidence)?)
}

/// The identifier of a file's data.
fn data_write_guid(shell: &Shell<'_>, disk: &str) -> anyhow::Result<String> {
    text(&shell.ask(&["godwit", "disk", "info", disk])?["data_write_guid"])
}

fn identity(shell: &mut Shell<'_>) -> anyhow::Result<()> {
    shell.narrator.chapter("Identifiers that tell whether data changed")?;
    shell.narrator.say(
        "Each file carries an identifier of its data, the DataWriteGuid. It is replaced, durably, before the first \
         change of what a guest sees lands in the file, and it stays when a disk is opened and nothing is changed. \
         Here the disk is opened for writing, read, and closed again.",
    )?;
    shell.run(&["godwit", "disk", "info", DISK])?;
    let before = data_write_guid(shell, DISK)?;
    shell.with_server(DISK, &[], |shell, uri| {
        shell.run(&["qemu-io", "-f", "raw", "-c", "read -q 0 64M", uri]).map(drop)
    })?;
    let after = data_write_guid(shell, DISK)?;
    ensure!(before == after, "the DataWriteGuid changed to {after} though no data did");
    Ok(shell.narrator.proved("opening and reading keeps the identifier of the data", &after)?)
}

fn boot(shell: &mut Shell<'_>, guest: &Guest) -> anyhow::Result<()> {
    shell.narrator.chapter("A guest boots from it, writes, trims, and powers off")?;
    shell.narrator.say(
        "Stock QEMU runs the guest; a separate process serves the disk to it over vhost-user-blk, straight from the \
         guest's memory. In the guest, 64 MiB are written in files whose content is known, most are deleted, and \
         fstrim tells the disk which space the file system no longer uses. The files that stay are then read back \
         from the disk.",
    )?;
    let map_before = Map::of(shell)?;
    let identity_before = data_write_guid(shell, DISK)?;
    let before = shell.host_bytes(DISK)?;
    let mut written = 0;
    let console = shell.boot(DISK, guest, "godwit.job=write-trim godwit.pause=1", |shell| {
        written = shell.host_bytes(DISK)?;
        Ok(())
    })?;
    for expected in ["guest: trimmed", "worker: 2 files of 1024 blocks done", "guest: power off"] {
        ensure!(console.iter().any(|line| line.contains(expected)), "the guest did not say {expected:?}");
    }
    shell.narrator.proved(
        "a guest boots from the file",
        "its own check of what it wrote and kept found no difference",
    )?;
    space(shell, before, written)?;

    let identity = data_write_guid(shell, DISK)?;
    ensure!(identity != identity_before, "the guest changed data, but not its identifier");
    let evidence = format!("{identity_before} became {identity}");
    shell.narrator.proved("changed data has a new identifier", &evidence)?;
    states(shell, &map_before)
}

fn space(shell: &mut Shell<'_>, before: u64, written: u64) -> anyhow::Result<()> {
    let after = shell.host_bytes(DISK)?;
    ensure!(
        written >= before + WRITTEN_BYTES,
        "64 MiB were written, but the file grew from {before} to {written}"
    );
    let most = before + KEPT_BYTES + OVERHEAD_BYTES;
    ensure!(after <= most, "after the trim the file takes {after} bytes, more than {most}");
    let [before, written, after] = [before, written, after].map(Size::of);
    let evidence = format!("on the host the file took {before}, then {written}, and {after} after fstrim");
    Ok(shell.narrator.proved("trimmed space goes back to the host", &evidence)?)
}

/// How much of the disk is in each state.
struct Map(BTreeMap<String, u64>);

impl Map {
    fn of(shell: &Shell<'_>) -> anyhow::Result<Self> {
        let answer = shell.ask(&["godwit", "disk", "map", DISK])?;
        let mut sums = BTreeMap::new();
        for entry in answer.as_array().context("the map is no list")? {
            let state = entry["state"].as_str().context("an extent without a state")?;
            *sums.entry(state.to_owned()).or_default() +=
                entry["length"].as_u64().context("an extent without a length")?;
        }
        Ok(Self(sums))
    }

    fn text(&self) -> String {
        let parts = self.0.iter().map(|(state, bytes)| format!("{} {state}", Size::of(*bytes)));
        parts.collect::<Vec<_>>().join(", ")
    }
}

fn states(shell: &mut Shell<'_>, before: &Map) -> anyhow::Result<()> {
    shell.narrator.say(
        "Every extent of the disk has a state. What the guest trimmed is no longer described by the file: it reads \
         as zeroes, and its space is free for new data.",
    )?;
    shell.run(&["godwit", "disk", "map", DISK, "--svg", "map.svg"])?;
    let after = Map::of(shell)?;
    ensure!(after.0 != before.0, "the guest wrote and trimmed, but the map is what it was: {}", after.text());
    let whole = after.0.values().sum::<u64>();
    ensure!(whole == 1 << 30, "the map covers {whole} bytes of 1 GiB");
    let evidence = format!("before: {}; after: {}; drawn in map.svg", before.text(), after.text());
    Ok(shell.narrator.proved("the map tells the state of every byte", &evidence)?)
}

fn kills(shell: &mut Shell<'_>, guest: &Guest) -> anyhow::Result<()> {
    shell.narrator.chapter("Processes are killed while the guest works")?;
    shell.narrator.say(
        "The guest writes, overwrites, deletes and trims without a pause, and says which of its blocks are durable: \
         'ack 1 0 24.' means that writer 1's blocks from 0 up to 24 are. First the process that serves the disk is \
         killed. Another one takes over, with the requests that were in flight; the guest goes on and sees no error.",
    )?;
    let mut machine = Machine::start(shell, DISK, guest, "godwit.job=load")?;
    machine.wait_for_acknowledgements(shell, ACKNOWLEDGEMENTS)?;
    let [_, _, server] = machine.pids();
    shell.narrator.command(&format!("kill -9 {server}"))?;
    machine.kill_server()?;
    let [supervisor, qemu, server] = machine.pids();
    shell.narrator.say(&format!("The disk is now served by process {server}."))?;
    machine.wait_for_acknowledgements(shell, ACKNOWLEDGEMENTS)?;
    let evidence = "its self-checking load went on without an error";
    shell.narrator.proved("a guest does not notice that its disk's server is killed", evidence)?;

    shell.narrator.say(
        "Then everything is killed at once: server, QEMU, and the supervisor. The file is left as after a power cut; \
         the next open replays its log, and the guest's next boot replays the journal of its file system.",
    )?;
    shell.narrator.command(&format!("kill -9 {supervisor} {qemu} {server}"))?;
    let acknowledged = machine.kill_everything()?;
    shell.run(&["godwit", "disk", "check", DISK])?;
    let words: Vec<_> =
        acknowledged.iter().map(|(writer, (floor, end))| format!("{writer}:{floor}:{end}")).collect();
    let parameters = format!("godwit.job=verify godwit.acknowledged={}", words.join(","));
    let console = shell.boot(DISK, guest, &parameters, |_| Ok(()))?;
    let verdict =
        console.iter().find(|line| line.starts_with("verify: all")).context("the guest has not verified")?;
    Ok(shell
        .narrator
        .proved("nothing that was acknowledged as durable is lost when everything is killed", verdict)?)
}

fn checks(shell: &mut Shell<'_>, keep: bool) -> anyhow::Result<()> {
    shell.narrator.chapter("The file is sound, says everybody")?;
    shell.narrator.say(
        "Godwit's own check looks at everything that the format defines, and QEMU's at what it knows.",
    )?;
    shell.run(&["godwit", "disk", "check", DISK])?;
    shell.narrator.proved("the file is sound", "godwit disk check")?;
    shell.run(&["qemu-img", "check", "-f", "vhdx", DISK])?;
    shell.narrator.proved("QEMU finds the file sound", "qemu-img check")?;
    shell.narrator.say(
        "The content is read through Godwit into a raw file, and QEMU compares that with what its own VHDX code \
         reads from the same file. The file system in it is then checked by its own tool.",
    )?;
    shell.with_server(DISK, &["--read-only"], |shell, uri| {
        shell.run(&["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, CONTENT]).map(drop)
    })?;
    shell.run(&["qemu-img", "compare", "-f", "vhdx", "-F", "raw", DISK, CONTENT])?;
    shell.narrator.proved("Godwit and QEMU read the same from the file", "qemu-img compare, all of 1 GiB")?;
    shell.run(&["e2fsck", "-f", "-n", CONTENT])?;
    shell.narrator.proved("the guest's file system is clean", "e2fsck -f -n")?;
    if !keep {
        std::fs::remove_file(shell.dir.join(CONTENT)).context("remove the raw copy")?;
    }
    Ok(())
}

fn refusal(shell: &mut Shell<'_>) -> anyhow::Result<()> {
    shell.narrator.chapter("A disk that may be corrupt is refused")?;
    shell.narrator.say(
        "A differencing disk holds only what differs from its parent, and keeps a copy of the parent's identifier. \
         Here a base and a child of it are made, and the child opens. Then the base is written to behind the \
         child's back, as can happen when somebody starts an old machine by mistake.",
    )?;
    shell.run(&["godwit", "disk", "create", "base.vhdx", "64M"])?;
    write_pattern(shell, "base.vhdx", "0x11", "4M")?;
    shell.run(&["godwit", "disk", "create", "child.vhdx", "--parent", "base.vhdx"])?;
    write_pattern(shell, "child.vhdx", "0x22", "8M")?;
    shell.run(&["godwit", "disk", "info", "--chain", "child.vhdx"])?;
    write_pattern(shell, "base.vhdx", "0x33", "4M")?;
    let [base, child] = ["base.vhdx", "child.vhdx"].map(|disk| shell.ask(&["godwit", "disk", "info", disk]));
    let (now, expected) = (text(&base?["data_write_guid"])?, text(&child?["parent"]["linkage"])?);
    shell.narrator.say(
        "Now what the child does not hold itself is not what it was made on, and the open is refused.",
    )?;
    let ended = shell.try_run(&["godwit", "serve", "child.vhdx", "--nbd", "nbd+unix:///?socket=nbd.sock"])?;
    ensure!(ended.code != Some(0), "a child whose parent has changed was opened");
    for fact in [now.as_str(), expected.as_str(), "base.vhdx"] {
        ensure!(ended.text.contains(fact), "the refusal does not name {fact}");
    }
    let evidence =
        format!("the child expects {expected}, the base has {now}; the message names both, and the ways out");
    Ok(shell.narrator.proved("a child of a changed parent is refused", &evidence)?)
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is no text"))?.to_owned())
}

fn write_pattern(shell: &mut Shell<'_>, disk: &str, byte: &str, offset: &str) -> anyhow::Result<()> {
    let write = format!("write -q -P {byte} {offset} 1M");
    shell.with_server(disk, &[], |shell, uri| {
        shell.run(&["qemu-io", "-f", "raw", "-c", &write, uri]).map(drop)
    })
}
