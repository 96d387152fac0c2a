//! TLS, with certificates made for the test.

use std::path::{Path, PathBuf};

use block::Disk;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serve::nbd::TlsIdentity;
use testkit::{MemDev, block_on};

use super::server::Serving;
use super::tools::{pattern, run, run_to_failure, tool, write_file};

const DISK_BYTES: u64 = 8 << 20;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// An authority, and directories of certificates by it, under the file names that QEMU and libnbd look for.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let certificates = Self { dir };
        let authority = authority();
        certificates.write("server", &authority, Some("server"));
        certificates.write("client", &authority, Some("client"));
        certificates.write("nobody", &authority, None);
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, authority: &Authority, role: Option<&str>) {
        let dir = self.path(name);
        std::fs::create_dir(&dir).expect("a directory can be made");
        write_file(&dir.join("ca-cert.pem"), authority.pem().as_bytes());
        if let Some(role) = role {
            leaf(&dir, role, authority);
        }
    }
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key can be made"))
        .expect("it can be signed")
}

fn leaf(dir: &Path, role: &str, authority: &Authority) {
    let key = KeyPair::generate().expect("a key can be made");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("the names are good");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, authority).expect("it can be signed");
    write_file(&dir.join(format!("{role}-cert.pem")), certificate.pem().as_bytes());
    write_file(&dir.join(format!("{role}-key.pem")), key.serialize_pem().as_bytes());
}

fn serving(disk: &Disk, certificates: &Certificates, verify_clients: bool) -> Serving {
    let identity = TlsIdentity::load(&certificates.path("server"), verify_clients).expect("they are good");
    Serving::new(disk, &["nbds://localhost:0/secret"], Some(&identity))
}

fn with_certificates(uri: &str, certificates: &Path) -> String {
    format!("{uri}?tls-certificates={}", certificates.display())
}

#[test]
fn a_disk_is_copied_both_ways_through_tls() {
    let disk = Disk::new(MemDev::new(DISK_BYTES));
    let certificates = Certificates::new();
    let serving = serving(&disk, &certificates, false);
    let uri = with_certificates(&serving.uri(), &certificates.path("nobody"));
    let (source, copy) = (serving.path("source"), serving.path("copy"));
    let bytes = pattern(DISK_BYTES as usize, 9);
    write_file(&source, &bytes);
    let Some(mut command) = tool("nbdinfo") else { return };
    let info = run(command.arg(&uri));
    assert!(info.contains("with TLS"), "{info}");
    let Some(mut command) = tool("nbdcopy") else { return };
    run(command.arg(&source).arg(&uri));
    assert!(block_on(disk.read_vec(0, DISK_BYTES as usize)).unwrap() == bytes);
    let Some(mut command) = tool("nbdcopy") else { return };
    run(command.arg("--request-size=4194304").arg(&uri).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == bytes);
}

#[test]
fn nothing_is_told_to_a_client_without_tls() {
    let certificates = Certificates::new();
    let serving = serving(&Disk::new(MemDev::new(DISK_BYTES)), &certificates, false);
    let Some(mut command) = tool("nbdinfo") else { return };
    run_to_failure(command.arg(serving.uri().replace("nbds:", "nbd:")));
    let Some(mut command) = tool("nbdinfo") else { return };
    run_to_failure(command.arg("--list").arg(serving.uri().replace("nbds:", "nbd:")));
}

#[test]
fn clients_without_a_certificate_of_the_authority_are_shut_out_when_that_is_asked_for() {
    let certificates = Certificates::new();
    certificates.write("stranger", &authority(), Some("client"));
    std::fs::copy(
        certificates.path("server").join("ca-cert.pem"),
        certificates.path("stranger").join("ca-cert.pem"),
    )
    .expect("the stranger knows the server's authority");
    let serving = serving(&Disk::new(MemDev::new(DISK_BYTES)), &certificates, true);
    for (who, let_in) in [("client", true), ("nobody", false), ("stranger", false)] {
        let Some(mut command) = tool("nbdinfo") else { return };
        command.arg(with_certificates(&serving.uri(), &certificates.path(who)));
        let _ = if let_in { run(&mut command) } else { run_to_failure(&mut command) };
    }
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let certificates = Certificates::new();
    let error = TlsIdentity::load(&certificates.path("nobody"), false).expect_err("there is no certificate");
    assert!(error.to_string().contains("server-cert.pem"), "{error}");
}
