//! A server on a thread of this process.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use block::Disk;
use serve::nbd::{Listener, NbdUri, TlsIdentity, serve};
use tokio::sync::oneshot;

/// A disk that is served until this is dropped, which waits for the server's orderly end.
pub(crate) struct Serving {
    pub(crate) dir: tempfile::TempDir,
    uris: Vec<NbdUri>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Serves `disk` on a Unix socket in a directory of its own.
    pub(crate) fn unix(disk: &Disk) -> Self {
        Self::new(disk, &["nbd+unix:///?socket=DIR/nbd.sock"], None)
    }

    /// Serves `disk` on all of `uris`, in which `DIR` stands for a directory of the test's own.
    pub(crate) fn new(disk: &Disk, uris: &[&str], tls: Option<&TlsIdentity>) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let place = dir.path().to_str().expect("the directory's name is UTF-8");
        let bind = |uri: &&str| {
            let uri = uri.replace("DIR", place).parse().expect("the test's URI is one");
            Listener::bind(&uri, disk, "a disk of the tests", tls).expect("the socket can be bound")
        };
        let listeners: Vec<_> = uris.iter().map(bind).collect();
        let uris = listeners.iter().map(|listener| listener.uri().clone()).collect();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
                .expect("a runtime can be made");
            let serving = serve(listeners, async { drop(stopped.await) });
            runtime.block_on(serving).expect("the sockets are usable");
        });
        Self { dir, uris, stop: Some(stop), thread: Some(thread) }
    }

    /// Where clients connect.
    pub(crate) fn uri(&self) -> String {
        self.uris[0].to_string()
    }

    pub(crate) fn uris(&self) -> Vec<String> {
        self.uris.iter().map(ToString::to_string).collect()
    }

    /// The Unix socket of [`Self::unix`].
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

/// Whether `path` is there.
pub(crate) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
