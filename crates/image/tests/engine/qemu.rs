//! QEMU on our files: it reads what we wrote, we read what it wrote, also after power cuts.
//!
//! Needs qemu-img and qemu-io; without them the tests say so and pass.

use std::path::Path;
use std::process::{Command, Output};

use block::{ByteRange, Disk};
use hostio::{HostFile, OpenOptions};
use image::ImageDev;
use image::vhdx::{self, Access, CreateOptions, Kind, Vhdx};
use testkit::{Rng, Survival, pattern};

use crate::cases::CASES;
use crate::crash;

const MIB: u64 = 1 << 20;
const VIRTUAL_SIZE: u64 = 40 * MIB;

fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("run {program}: {error}"),
    }
}

fn assert_accepts(output: &Output, what: &str) {
    let text = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).join("\n");
    assert!(output.status.success(), "{what}: {text}");
}

async fn open(path: &Path, access: Access) -> Disk {
    let host_access = match access {
        Access::ReadOnly => hostio::Access::ReadOnly,
        Access::ReadWrite => hostio::Access::ReadWrite,
    };
    let file = HostFile::open(path, &OpenOptions { access: host_access, ..OpenOptions::default() }).unwrap();
    let opened = vhdx::open(Disk::new(file), access).await.unwrap();
    Disk::new(ImageDev::new(Vhdx::new(opened), None))
}

/// What qemu-io is asked, and what it does to the model.
fn qemu_turn(rng: &mut Rng, model: &mut [u8]) -> Vec<String> {
    let mut commands = Vec::new();
    for _ in 0..4 {
        let start = rng.below(VIRTUAL_SIZE / 512) * 512;
        let len = ((rng.below(300) + 1) * 512).min(VIRTUAL_SIZE - start);
        let value = (rng.below(255) + 1) as u8;
        commands.push(format!("write -P {value} {start} {len}"));
        model[start as usize..(start + len) as usize].fill(value);
    }
    commands
}

async fn our_turn(disk: &Disk, rng: &mut Rng, model: &mut [u8]) {
    for _ in 0..6 {
        let start = rng.below(VIRTUAL_SIZE / 512) * 512;
        let len = ((rng.below(6000) + 1) * 512).min(VIRTUAL_SIZE - start);
        let range = ByteRange::new(start, len).unwrap();
        let place = &mut model[start as usize..range.end() as usize];
        if rng.one_in(3) {
            let flags = block::ZeroFlags { may_unmap: rng.one_in(2), ..block::ZeroFlags::default() };
            disk.write_zeroes(range, flags).await.unwrap();
            place.fill(0);
        } else {
            let bytes = pattern(rng.next_u64(), range);
            disk.write_all(start, &bytes).await.unwrap();
            place.copy_from_slice(&bytes);
        }
    }
}

#[test]
fn taking_turns_with_qemu_io_on_one_file_agrees_with_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("turns.vhdx");
    let name = path.to_str().unwrap();
    let mut rng = Rng::new(11);
    let mut model = vec![0; VIRTUAL_SIZE as usize];
    hostio::block_on(async {
        let file = Disk::new(HostFile::create(&path, 0, &OpenOptions::default()).unwrap());
        let options =
            CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(VIRTUAL_SIZE, Kind::Dynamic) };
        vhdx::create(&file, &options).await.unwrap();
        file.close().await.unwrap();
        for turn in 0..8 {
            let disk = open(&path, Access::ReadWrite).await;
            our_turn(&disk, &mut rng, &mut model).await;
            disk.close().await.unwrap();
            let Some(checked) = run("qemu-img", &["check", "-f", "vhdx", name]) else { return };
            assert_accepts(&checked, "qemu-img check after our turn");
            let mut args = vec!["-f".to_owned(), "vhdx".to_owned()];
            for command in qemu_turn(&mut rng, &mut model) {
                args.extend(["-c".to_owned(), command]);
            }
            args.push(name.to_owned());
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let Some(wrote) = run("qemu-io", &args) else { return };
            assert_accepts(&wrote, "qemu-io writes");
            let disk = open(&path, Access::ReadOnly).await;
            let seen = disk.read_vec(0, model.len()).await.unwrap();
            let differs = seen.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!(differs, None, "turn {turn}: the first byte that differs from the model");
            disk.close().await.unwrap();
        }
    });
    let raw = dir.path().join("model.raw");
    std::fs::write(&raw, &model).unwrap();
    let args = ["compare", "-f", "vhdx", "-F", "raw", name, raw.to_str().unwrap()];
    if let Some(compared) = run("qemu-img", &args) {
        assert_accepts(&compared, "qemu-img compare");
    }
}

#[test]
fn qemu_opens_what_a_power_cut_leaves_and_sees_what_we_see() {
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("cut.vhdx"), dir.path().join("ours.raw"));
    let (name, raw_name) = (path.to_str().unwrap(), raw.to_str().unwrap());
    for seed in 0..3 {
        let run_of = crash::run(CASES[0], 50 + seed, 1 + seed as usize, 60);
        let cuts = run_of.history.cuts();
        for &cut in cuts.iter().skip(seed as usize).step_by(cuts.len() / 12) {
            let image =
                run_of.history.crash_at(cut, Survival::Torn { seed: cut as u64, unit_bytes: 512 }).image();
            std::fs::write(&path, image.to_vec(image.range())).unwrap();
            hostio::block_on(async {
                let disk = open(&path, Access::ReadOnly).await;
                std::fs::write(&raw, disk.read_vec(0, disk.size() as usize).await.unwrap()).unwrap();
                disk.close().await.unwrap();
            });
            // QEMU replays a log only in a writable open.
            let Some(repaired) = run("qemu-img", &["check", "-r", "all", "-f", "vhdx", name]) else { return };
            assert_accepts(&repaired, &format!("qemu-img check -r all, seed {seed} cut {cut}"));
            let Some(compared) = run("qemu-img", &["compare", "-f", "vhdx", "-F", "raw", name, raw_name])
            else {
                return;
            };
            assert_accepts(&compared, &format!("qemu-img compare, seed {seed} cut {cut}"));
        }
    }
}
