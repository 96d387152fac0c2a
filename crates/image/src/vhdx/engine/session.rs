//! A session of changes: it begins with new identifiers and an open log, and ends with the file as a closed one is.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use block::{BlockError, ByteRange, Disk, ErrorKind, Result, ResultExt, ZeroFlags};
use futures_util::future::join_all;
use uuid::Uuid;

use super::Shared;
use super::log::{FileSizes, Log, LogWrite};
use super::pages::{PageImage, PageNumber};
use super::state::Session;
use crate::vhdx::header::Headers;
use crate::vhdx::layout::{LOG_VERSION, MIB};
use crate::vhdx::open::Opened;

/// Who writes metadata to the host file; one flush at a time owns it.
pub(super) struct Writer {
    headers: Headers,
    /// The log, once the session has begun.
    log: Option<Log>,
    /// The pages that the newest entry holds, or the next one will, and that are not in their places yet.
    logged: BTreeMap<PageNumber, PageImage>,
    /// Images up to this version are in an entry.
    appended_version: u64,
    /// Images up to this version are durable in the log.
    durable_version: u64,
    /// Length of the host file that is known to be durable.
    durable_bytes: u64,
    /// Flushes that are complete.
    pub(super) flushes_finished: u64,
}

impl Writer {
    pub(super) fn new(opened: &Opened) -> Self {
        Self {
            headers: opened.headers.clone(),
            log: None,
            logged: BTreeMap::new(),
            appended_version: 0,
            durable_version: 0,
            durable_bytes: 0,
            flushes_finished: 0,
        }
    }

    pub(super) fn data_write_guid(&self) -> Uuid {
        self.headers.current.data_write_guid
    }

    /// Makes everything that was written to the host file durable, its length included.
    pub(super) async fn sync(&mut self, file: &Disk) -> Result<()> {
        let size = file.size();
        file.flush().await?;
        self.durable_bytes = size;
        self.durable_version = self.appended_version;
        if let Some(log) = &mut self.log {
            log.note_durable();
        }
        Ok(())
    }

    /// Whether the host file is longer than what is durable of it.
    pub(super) fn has_grown(&self, file: &Disk) -> bool {
        file.size() > self.durable_bytes
    }

    /// The log of the session.
    pub(super) fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("changes are logged in a session, which has a log")
    }

    /// The pages that are durable in the log and may therefore go to their places.
    pub(super) fn durable_pages(&self) -> Vec<PageImage> {
        self.logged.values().filter(|image| image.version <= self.durable_version).cloned().collect()
    }

    /// Notes that `images` are durable in their places.
    pub(super) fn forget(&mut self, images: &[PageImage]) {
        for image in images {
            if self.logged.get(&image.number).is_some_and(|logged| logged.version == image.version) {
                self.logged.remove(&image.number);
            }
        }
    }

    /// Whether the next entry can hold `images` beside what it has to hold.
    pub(super) fn fits(&mut self, images: &[PageImage]) -> bool {
        let new = images.iter().filter(|image| !self.logged.contains_key(&image.number)).count();
        self.logged.is_empty() || self.logged.len() + new <= self.log().entry_pages_max()
    }

    /// Adds `images` to what the next entry holds.
    pub(super) fn add(&mut self, images: &[PageImage]) {
        self.logged.extend(images.iter().map(|image| (image.number, image.clone())));
    }

    /// Number of pages that the next entry holds.
    pub(super) fn pages_count(&self) -> usize {
        self.logged.len()
    }

    /// Appends an entry with all that it has to hold, which replaces the entries before it.
    pub(super) fn append_entry(&mut self, file: &Disk) -> Vec<LogWrite> {
        let sizes = self.file_sizes(file);
        let images: Vec<PageImage> = self.logged.values().cloned().collect();
        self.appended_version =
            images.iter().map(|image| image.version).max().unwrap_or(self.appended_version);
        let log = self.log();
        log.retire(log.live_count());
        log.append(&images, sizes)
    }

    /// The sizes that a log entry carries now.
    pub(super) fn file_sizes(&self, file: &Disk) -> FileSizes {
        FileSizes { flushed: self.durable_bytes / MIB * MIB, last: file.size().next_multiple_of(MIB) }
    }
}

/// Writes parts of log entries, all at once.
pub(super) async fn write_log(file: &Disk, writes: &[LogWrite]) -> Result<()> {
    let writes = writes.iter().map(|write| file.write_all(write.host_offset, &write.bytes));
    let done: Result<()> = join_all(writes).await.into_iter().collect();
    done.context(|| "write the log".to_owned())
}

impl Shared {
    /// Begins the session if that was not done: when this returns, the identifiers that the format wants before a
    /// change are durable, the log is open, and all free space reads as zeroes.
    ///
    /// FileWriteGuid and DataWriteGuid change together, because this engine makes no change that a guest could not
    /// see. MS-VHDX 2.2.2.
    ///
    /// # Errors
    /// What the host reports; the file is then poisoned, but still has a valid header.
    pub(super) async fn begin_session(&self) -> Result<()> {
        let mut writer = self.writer.lock().await;
        {
            let state = self.state();
            state.check_usable()?;
            if matches!(state.session, Session::Begun) {
                return Ok(());
            }
        }
        let unfinished = Unfinished::new(self);
        let begun =
            self.open_log_and_headers(&mut writer).await.context(|| "begin to change the file".to_owned());
        unfinished.finish(&begun);
        if begun.is_ok() {
            self.state().session = Session::Begun;
        }
        begun
    }

    async fn open_log_and_headers(&self, writer: &mut Writer) -> Result<()> {
        let header = &writer.headers.current;
        let Some(region) =
            ByteRange::new(header.log_offset, header.log_len).filter(|region| !region.is_empty())
        else {
            return Err(BlockError::new(
                ErrorKind::Unsupported,
                "the file has no log, without which it cannot be changed safely",
            ));
        };
        self.clean_free_space().await?;
        let mut log = Log::new(region, Uuid::new_v4(), first_sequence());
        // The header must not name a log without a valid entry, which the format calls corrupt: an empty one goes
        // first. It means nothing until the header carries its identifier.
        writer.durable_bytes = 0;
        let entry = log.append(&[], writer.file_sizes(&self.file));
        write_log(&self.file, &entry).await?;
        writer.sync(&self.file).await?;
        let (file_write_guid, data_write_guid, log_guid) = (Uuid::new_v4(), Uuid::new_v4(), log.guid());
        writer
            .headers
            .update(&self.file, |header| {
                header.file_write_guid = file_write_guid;
                header.data_write_guid = data_write_guid;
                header.log_guid = log_guid;
                header.log_version = LOG_VERSION;
            })
            .await
            .context(|| "write the headers".to_owned())?;
        writer.log = Some(log);
        Ok(())
    }

    /// Makes everything in the host file that belongs to nothing read as zeroes, so that new blocks need no filling.
    async fn clean_free_space(&self) -> Result<()> {
        let (free, end) = {
            let state = self.state();
            (state.space.free_ranges().collect::<Vec<_>>(), state.space.end())
        };
        let size = self.file.size();
        // Files by old programs end inside the last block or beside a MiB.
        let whole = size.next_multiple_of(MIB).max(end);
        if whole > size {
            self.file
                .resize(whole)
                .await
                .context(|| format!("grow the file from {size} to {whole} bytes"))?;
        }
        let tail = ByteRange::between(end, whole).filter(|tail| !tail.is_empty());
        for range in free.into_iter().chain(tail) {
            self.punch(range).await?;
        }
        Ok(())
    }

    /// Makes a stretch of the host file read as zeroes, and gives its space to the host where it takes it.
    pub(super) async fn punch(&self, range: ByteRange) -> Result<()> {
        let flags = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
        self.file.write_zeroes(range, flags).await.context(|| format!("punch {range} of the file"))
    }

    /// Ends the session: lets the requests that are here end and no others begin, puts every page in its place, gives
    /// back what the file has too much, and leaves no log to replay. Closes the host file in any case. A close beside
    /// another waits for it and has nothing left to do.
    ///
    /// # Errors
    /// What the host reports; what was flushed is safe, and the next open replays the log.
    pub(super) async fn close(&self) -> Result<()> {
        self.state().closing = true;
        let _turn = self.closing.lock().await;
        self.requests_done().await;
        if matches!(self.state().session, Session::Closed) {
            return Ok(());
        }
        let ended = self.end_session().await;
        self.state().session = Session::Closed;
        let closed = self.file.close().await;
        ended.and(closed)
    }

    async fn end_session(&self) -> Result<()> {
        if !matches!(self.state().session, Session::Begun) {
            return self.state().check_usable();
        }
        // Twice over, so that freed space at the end of the file is free when the file is cut.
        self.reclaim().await?;
        let mut writer = self.writer.lock().await;
        let unfinished = Unfinished::new(self);
        let ended = self.settle_file(&mut writer).await.context(|| "leave the file closed".to_owned());
        unfinished.finish(&ended);
        ended
    }

    async fn settle_file(&self, writer: &mut Writer) -> Result<()> {
        self.settle_logged(writer).await?;
        writer.headers.update(&self.file, |header| header.log_guid = Uuid::nil()).await?;
        // Only without a log may the file become shorter than a log entry says it was.
        let end = self.state().space.end();
        if end < self.file.size() {
            self.file.resize(end).await.context(|| format!("cut the file to {end} bytes"))?;
            self.file.flush().await?;
        }
        Ok(())
    }

    /// Resolves when no request is under way.
    async fn requests_done(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if state.requests_count == 0 {
                return Poll::Ready(());
            }
            state.idle_wakers.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Latches the failure: what the file holds is uncertain from here on.
    pub(super) fn poison(&self, error: &BlockError) {
        let mut state = self.state();
        if !matches!(state.session, Session::Closed | Session::Poisoned(_)) {
            tracing::error!(error = error.chain(), "the image can no longer be changed");
            state.session = Session::Poisoned(error.chain());
        }
    }
}

/// A change of metadata that is under way. If it fails, or is given up halfway because its future is dropped, the file
/// is poisoned: writes to metadata may still land, and what they were to make durable is not.
pub(super) struct Unfinished<'s> {
    shared: &'s Shared,
    finished: bool,
}

impl<'s> Unfinished<'s> {
    pub(super) fn new(shared: &'s Shared) -> Self {
        Self { shared, finished: false }
    }

    /// Notes how the change ended.
    pub(super) fn finish(mut self, result: &Result<()>) {
        self.finished = true;
        if let Err(error) = result {
            self.shared.poison(error);
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.poison(&BlockError::new(ErrorKind::Io, "a change of metadata was given up halfway"));
        }
    }
}

/// Where the log's entries begin to count: random, so that entries of earlier sessions never continue ours, and small
/// enough never to run out.
fn first_sequence() -> u64 {
    u64::from(Uuid::new_v4().as_fields().0) + 1
}
