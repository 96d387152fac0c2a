//! `godwit disk` as scripts use it: the real binary, its JSON and its exit codes, beside QEMU's tools.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A folder for the images of one test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().expect("the host has room for temporary files"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `godwit disk` with `args` in the folder.
    fn godwit(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.arg("disk").args(args).current_dir(self.0.path()).output().expect("godwit can be started")
    }

    /// Runs `godwit disk` with `args`, which must succeed.
    fn done(&self, args: &[&str]) -> String {
        let output = self.godwit(args);
        assert!(output.status.success(), "godwit disk {args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("godwit prints UTF-8")
    }

    fn json(&self, args: &[&str]) -> Value {
        let answer = self.done(&[args, &["--json"]].concat());
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{args:?}: {error}: {answer}"))
    }

    /// Runs `godwit disk` with `args`, which must end with `code`; what it says on standard error.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.godwit(args);
        assert_eq!(output.status.code(), Some(code), "godwit disk {args:?}: {}", stderr(&output));
        stderr(&output)
    }

    /// Runs a tool of QEMU's; `None`, with a message, where it is not installed.
    fn tool(&self, tool: &str, args: &[&str]) -> Option<Output> {
        match Command::new(tool).args(args).current_dir(self.0.path()).output() {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("SKIPPED: {tool} is not here: {error}");
                None
            }
        }
    }

    /// Runs a tool of QEMU's that must succeed.
    fn tool_done(&self, tool: &str, args: &[&str]) -> Option<String> {
        let output = self.tool(tool, args)?;
        assert!(output.status.success(), "{tool} {args:?}: {}", stderr(&output));
        Some(String::from_utf8(output.stdout).expect("QEMU's tools print UTF-8"))
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn parse(json: &str) -> Value {
    serde_json::from_str(json).expect("the tool prints JSON")
}

fn change(path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the image is there");
    file.write_all_at(bytes, offset).expect("the image can be written");
}

#[test]
fn what_create_makes_is_what_info_and_qemu_img_see() {
    let folder = Folder::new();
    for (name, args, kind, block) in [
        ("dynamic.vhdx", &["10G"][..], "dynamic", 32 * MIB),
        ("small.vhdx", &["1.5G", "--block-size", "1M", "--physical-sector-size", "512"], "dynamic", MIB),
        ("fixed.vhdx", &["8M", "--type", "fixed"], "fixed", 2 * MIB),
        ("full.vhdx", &["8M", "--type", "fixed", "--preallocate"], "fixed", 2 * MIB),
        ("large.vhdx", &["64T"], "dynamic", 32 * MIB),
    ] {
        folder.done(&[&["create", name], args].concat());
        let info = folder.json(&["info", name]);
        assert_eq!((&info["kind"], &info["block_size"]), (&Value::from(kind), &Value::from(block)), "{name}");
        assert_eq!(info["log_dirty"], false, "{name}");
        assert_eq!(folder.json(&["check", name])["verdict"], "sound", "{name}");
        let Some(theirs) = folder.tool_done("qemu-img", &["info", "--output=json", name]) else { continue };
        let theirs = parse(&theirs);
        assert_eq!(
            (&theirs["format"], &theirs["virtual-size"]),
            (&Value::from("vhdx"), &info["virtual_size"])
        );
        folder.tool_done("qemu-img", &["check", name]);
    }
    // QEMU does not open disks with sectors of 4096 bytes.
    folder.done(&["create", "4096.vhdx", "1G", "--sector-size", "4096"]);
    assert_eq!(folder.json(&["info", "4096.vhdx"])["logical_sector_size"], 4096);
    let on_host = |name: &str| fs::metadata(folder.path(name)).unwrap().blocks() * 512;
    assert!(on_host("full.vhdx") >= 8 * MIB && on_host("fixed.vhdx") < 2 * MIB, "only one was preallocated");
}

#[test]
fn what_qemu_writes_is_where_the_map_says() {
    let folder = Folder::new();
    let create = ["create", "-q", "-f", "vhdx", "-o", "block_size=1M", "q.vhdx", "64M"];
    if folder.tool_done("qemu-img", &create).is_none() {
        return;
    }
    let write = ["-f", "vhdx", "-c", "write -P 0x55 3M 5M", "-c", "write -P 0xaa 40M 4k", "q.vhdx"];
    folder.tool_done("qemu-io", &write);
    let map = folder.json(&["map", "q.vhdx"]);
    let file = File::open(folder.path("q.vhdx")).unwrap();
    let (mut end, mut data) = (0, 0);
    for extent in map.as_array().expect("a map is a list") {
        let number = |key: &str| extent[key].as_u64().unwrap_or_else(|| panic!("{key} in {extent}"));
        assert_eq!(number("start"), end, "the map has no gaps");
        end += number("length");
        assert!(extent["data"] == true || extent["zero"] == true, "{extent}");
        if extent["data"] == false {
            continue;
        }
        data += number("length");
        if extent["zero"] == true {
            continue;
        }
        let mut bytes = vec![0; number("length") as usize];
        file.read_exact_at(&mut bytes, number("offset")).expect("the map's offsets lie in the file");
        let guest = |offset: u64| bytes[(offset - number("start")) as usize];
        match number("start") {
            3_145_728 => assert!((3 * MIB..8 * MIB).step_by(512).all(|offset| guest(offset) == 0x55)),
            41_943_040 => assert_eq!((guest(40 * MIB), number("length")), (0xaa, 4096)),
            other => panic!("nothing was written at {other}"),
        }
    }
    assert_eq!((end, data), (64 * MIB, 6 * MIB));
    let blocks = &folder.json(&["info", "q.vhdx"])["blocks"];
    assert_eq!(blocks["fully_present"], 6, "{blocks}");
}

#[test]
fn raw_images_are_mapped_as_qemu_img_maps_them() {
    let folder = Folder::new();
    folder.done(&["create", "disk.img", "64M"]);
    change(folder.path("disk.img"), 8 * MIB, &vec![7; MIB as usize]);
    let ours = folder.json(&["map", "disk.img"]);
    let spans = |map: &Value| -> Vec<(u64, u64, bool)> {
        let extents = map.as_array().expect("a map is a list").iter();
        let field = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
        extents.map(|e| (field(e, "start"), field(e, "length"), e["data"] == true)).collect()
    };
    assert_eq!(spans(&ours), [(0, 8 * MIB, false), (8 * MIB, MIB, true), (9 * MIB, 55 * MIB, false)]);
    if let Some(theirs) = folder.tool_done("qemu-img", &["map", "--output=json", "-f", "raw", "disk.img"]) {
        assert_eq!(spans(&parse(&theirs)), spans(&ours));
    }
}

#[test]
fn the_map_can_be_drawn() {
    let folder = Folder::new();
    folder.done(&["create", "disk.vhdx", "1G"]);
    folder.done(&["map", "disk.vhdx", "--svg", "disk.svg"]);
    let svg = fs::read_to_string(folder.path("disk.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    assert!(
        svg.contains("<title id=\"title\">disk.vhdx</title>") && svg.contains("not present: 1 GiB (100.0 %)")
    );
}

#[test]
fn a_check_ends_with_the_code_of_the_worst_finding() {
    let folder = Folder::new();
    folder.done(&["create", "sound.vhdx", "64M", "--block-size", "1M"]);
    let damaged = |name: &str, damage: &dyn Fn(&Path)| {
        fs::copy(folder.path("sound.vhdx"), folder.path(name)).unwrap();
        damage(&folder.path(name));
        name.to_owned()
    };
    let check = |name: &str, code: i32, rule: &str| {
        let output = folder.godwit(&["check", name, "--json"]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stderr(&output));
        let answer = parse(std::str::from_utf8(&output.stdout).unwrap());
        let rules: Vec<&str> = answer["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|finding| finding["rule"].as_str())
            .collect();
        assert!(rules.contains(&rule), "{name}: {answer}");
    };
    // An entry that says "present" and points behind the end of the file, where the table of a new file starts.
    let bat = folder.json(&["check", "sound.vhdx"])["file_size"].as_u64().unwrap() - MIB;
    let entry = (1_u64 << 40 | 6).to_le_bytes();
    check(&damaged("wild.vhdx", &|path| change(path, bat, &entry)), 2, "bat-beyond-end");
    // Data behind everything that the file's structures know of.
    let append = |path: &Path| {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(&vec![9; 2 * MIB as usize]).unwrap();
    };
    check(&damaged("grown.vhdx", &append), 3, "leaked-space");
    // One damaged header: the other one counts, and nothing is lost.
    check(&damaged("header.vhdx", &|path| change(path, 64 << 10, &[0; 64])), 0, "header-invalid");
    check(&damaged("signature.vhdx", &|path| change(path, 0, b"nonsense")), 2, "identifier");
    fs::write(folder.path("odd.img"), [1; 700]).unwrap();
    check("odd.img", 2, "raw-size");
    assert!(folder.fails(1, &["check", "missing.vhdx"]).contains("missing.vhdx"));
}

#[test]
fn nothing_is_overwritten_and_nothing_half_made_is_left() {
    let folder = Folder::new();
    fs::write(folder.path("disk.vhdx"), b"mine").unwrap();
    assert!(folder.fails(1, &["create", "disk.vhdx", "1G"]).contains("not overwritten"));
    assert_eq!(fs::read(folder.path("disk.vhdx")).unwrap(), b"mine");
    for args in [
        &["new.vhdx"][..],
        &["new.vhdx", "100"],
        &["new.vhdx", "65T"],
        &["new.vhdx", "1G", "--block-size", "3M"],
        &["new.vhdx", "1G", "--sector-size", "520"],
        &["new.vhdx", "1G", "--type", "differencing"],
        &["new.vhdx", "1G", "--preallocate"],
        &["new.vhdx", "--parent", "missing.vhdx"],
        &["new.img", "1G", "--block-size", "1M"],
        &["new.img"],
        &["no/such/folder.vhdx", "1G"],
    ] {
        folder.fails(1, &[&["create"], args].concat());
        assert!(!folder.path("new.vhdx").exists() && !folder.path("new.img").exists(), "{args:?}");
    }
    for size in ["1GB", "x", "-1", "1.5"] {
        folder.fails(64, &["create", "new.vhdx", size]);
    }
}

#[test]
fn an_image_in_use_is_looked_at_only_by_force() {
    let folder = Folder::new();
    folder.done(&["create", "disk.vhdx", "1G"]);
    let path = folder.path("disk.vhdx");
    let writer = hostio::HostFile::open(&path, &hostio::OpenOptions::read_write()).expect("nobody has it");
    for command in ["info", "map", "check"] {
        let said = folder.fails(1, &[command, "disk.vhdx"]);
        assert!(said.contains("disk.vhdx"), "{said}");
        folder.done(&[command, "disk.vhdx", "--force-share"]);
    }
    folder.fails(1, &["create", "child.vhdx", "--parent", "disk.vhdx"]);
    drop(writer);
    folder.done(&["info", "disk.vhdx"]);
}

/// Writes `bytes` at `offset` of the disk at `path`, through Godwit's own engine, and closes it.
fn write_through_the_engine(path: &Path, offset: u64, bytes: &[u8]) {
    hostio::block_on(async {
        let chain =
            graph::open_chain(path, &graph::ChainOptions::read_write()).await.expect("the chain is whole");
        chain.disk.write_all(offset, bytes).await.expect("the host has room");
        chain.disk.close().await.expect("the host takes everything");
    });
}

/// A base with data in its first MiB, and a chain of two children that wrote into the second and the third.
fn folder_with_a_chain() -> Folder {
    let folder = Folder::new();
    folder.done(&["create", "base.vhdx", "64M", "--block-size", "1M"]);
    write_through_the_engine(&folder.path("base.vhdx"), 0, &[1; 4096]);
    folder.done(&["create", "child.vhdx", "--parent", "base.vhdx", "--block-size", "1M"]);
    write_through_the_engine(&folder.path("child.vhdx"), MIB, &[2; 4096]);
    folder.done(&["create", "grandchild.vhdx", "--parent", "child.vhdx", "--block-size", "1M"]);
    write_through_the_engine(&folder.path("grandchild.vhdx"), 2 * MIB, &[3; 4096]);
    folder
}

#[test]
fn a_chain_is_told_and_mapped_layer_by_layer() {
    let folder = folder_with_a_chain();
    let infos = folder.json(&["info", "grandchild.vhdx", "--chain"]);
    let files: Vec<&str> =
        infos.as_array().unwrap().iter().filter_map(|info| info["filename"].as_str()).collect();
    let names: Vec<&str> = files.iter().filter_map(|file| file.rsplit('/').next()).collect();
    assert_eq!(names, ["grandchild.vhdx", "child.vhdx", "base.vhdx"]);
    for (child, parent) in [(0, 1), (1, 2)] {
        assert_eq!(infos[child]["parent"]["verdict"], "fits");
        assert_eq!(infos[child]["parent"]["linkage"], infos[parent]["data_write_guid"]);
        assert_eq!(infos[child]["disk_id"], infos[parent]["disk_id"], "the guest sees the same disk");
    }
    let map = folder.json(&["map", "grandchild.vhdx"]);
    let data: Vec<(u64, u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["zero"] == false)
        .map(|extent| ["start", "length", "depth"].map(|key| extent[key].as_u64().unwrap()).into())
        .collect();
    assert_eq!(data, [(0, 4096, 2), (MIB, 4096, 1), (2 * MIB, 4096, 0)]);
    folder.done(&["map", "grandchild.vhdx", "--svg", "map.svg"]);
    let svg = fs::read_to_string(folder.path("map.svg")).unwrap();
    assert!(svg.contains("in layer 2") && svg.contains("base.vhdx: 4 KiB (0.0 %)"), "{svg}");
    for name in names {
        assert_eq!(folder.json(&["check", name])["verdict"], "sound", "{name}");
    }
}

#[test]
fn a_chain_that_was_moved_together_is_found_and_one_that_was_torn_apart_is_told() {
    let folder = folder_with_a_chain();
    fs::create_dir(folder.path("moved")).unwrap();
    for name in ["base.vhdx", "child.vhdx", "grandchild.vhdx"] {
        fs::rename(folder.path(name), folder.path("moved").join(name)).unwrap();
    }
    folder.done(&["info", "moved/grandchild.vhdx", "--chain"]);
    fs::remove_file(folder.path("moved/base.vhdx")).unwrap();
    let info = folder.json(&["info", "moved/child.vhdx"]);
    assert_eq!(info["parent"]["verdict"], "missing", "{info}");
    assert!(info["parent"]["problem"].as_str().unwrap().contains("base.vhdx"), "{info}");
    folder.fails(1, &["info", "moved/grandchild.vhdx", "--chain"]);
    folder.fails(1, &["map", "moved/grandchild.vhdx"]);
    folder.fails(1, &["create", "new.vhdx", "--parent", "moved/child.vhdx"]);
    let output = folder.godwit(&["check", "moved/child.vhdx"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && said.contains("parent-missing"), "{said}");
}

#[test]
fn a_parent_that_was_changed_is_refused_with_both_identifiers() {
    let folder = folder_with_a_chain();
    let before = folder.json(&["info", "base.vhdx"])["data_write_guid"].clone();
    write_through_the_engine(&folder.path("base.vhdx"), 8 * MIB, &[9; 4096]);
    let after = folder.json(&["info", "base.vhdx"])["data_write_guid"].clone();
    assert_ne!(before, after);
    let info = folder.json(&["info", "child.vhdx"]);
    assert_eq!((&info["parent"]["verdict"], &info["parent"]["linkage"]), (&Value::from("mismatch"), &before));
    folder.fails(1, &["info", "grandchild.vhdx", "--chain"]);
    let refused = folder.fails(1, &["map", "grandchild.vhdx"]);
    for fact in [before.as_str().unwrap(), after.as_str().unwrap(), "child.vhdx", "base.vhdx"] {
        assert!(refused.contains(fact), "{fact}: {refused}");
    }
    folder.done(&["map", "grandchild.vhdx", "--allow-parent-mismatch"]);
    folder.fails(1, &["create", "new.vhdx", "--parent", "child.vhdx"]);
    let output = folder.godwit(&["check", "child.vhdx"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && said.contains("linkage-mismatch"), "{said}");
}

#[test]
fn a_format_is_never_guessed_from_content() {
    let folder = Folder::new();
    folder.done(&["create", "disk.vhdx", "64M"]);
    fs::rename(folder.path("disk.vhdx"), folder.path("disk.img")).unwrap();
    assert_eq!(folder.json(&["info", "disk.img"])["format"], "raw");
    assert_eq!(folder.json(&["info", "disk.img", "--format", "vhdx"])["format"], "vhdx");
    fs::rename(folder.path("disk.img"), folder.path("disk")).unwrap();
    assert!(folder.fails(1, &["info", "disk"]).contains("give the format"));
}

#[test]
fn help_names_every_command_and_exits_with_success() {
    let help = Folder::new().done(&[OsStr::new("--help").to_str().unwrap()]);
    for command in ["create", "info", "map", "check"] {
        assert!(help.contains(command), "{help}");
    }
}
