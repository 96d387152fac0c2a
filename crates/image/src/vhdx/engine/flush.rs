//! Making committed changes durable: images of the changed pages into the log, then one flush of the host file.

use std::collections::BTreeMap;

use block::{ByteRange, Result, ResultExt, SgList, WriteFlags};
use futures_util::future::join_all;

use super::Shared;
use super::inflight::Epoch;
use super::pages::{PAGE_BYTES, PageImage, PageNumber};
use super::session::{Unfinished, Writer, write_log};
use super::state::{Session, State};

/// Neighbouring pages that go to the host file in one write at most.
const PAGES_PER_WRITE_MAX: usize = 256;

/// What a flush takes from the state: everything that was committed before it.
struct Batch {
    number: u64,
    changes: Changes,
    freed: Vec<ByteRange>,
    /// Requests that began before the batch was taken.
    epoch: Epoch,
    punched: Vec<ByteRange>,
}

/// Changes of the map that are not in the log yet.
struct Changes {
    number: u64,
    images: Vec<PageImage>,
    /// The data that the images refer to must be durable before them.
    data_first: bool,
}

impl Shared {
    /// Writes all changes of the map that were made before the call to the log, so that they outlive the process, though
    /// not a power cut. A request waits for those of others, too: its bytes may be in a block that another allocated.
    ///
    /// Callers that come while entries are written share the next ones.
    ///
    /// # Errors
    /// What the host reports; the file is then poisoned.
    pub(super) async fn log_changes(&self) -> Result<()> {
        let Some(wanted) = self.state().changes_to_log() else { return Ok(()) };
        let mut writer = self.writer.lock().await;
        {
            let state = self.state();
            state.check_usable()?;
            if state.images_logged >= wanted {
                return Ok(());
            }
        }
        let unfinished = Unfinished::new(self);
        let changes = self.state().take_changes();
        let logged = self.log_images(&mut writer, &changes).await;
        unfinished.finish(&logged);
        logged
    }

    /// Makes everything that was committed before the call durable.
    ///
    /// Callers that come while a flush runs share the next one.
    ///
    /// # Errors
    /// What the host reports; the file is then poisoned.
    pub(super) async fn flush(&self) -> Result<()> {
        let wanted = {
            let state = self.state();
            state.check_usable()?;
            if matches!(state.session, Session::NotBegun) {
                return Ok(());
            }
            state.flushes_started + 1
        };
        let mut writer = self.writer.lock().await;
        self.state().check_usable()?;
        if writer.flushes_finished >= wanted {
            return Ok(());
        }
        let unfinished = Unfinished::new(self);
        let batch = self.state().take_batch();
        let number = batch.number;
        let flushed = self.flush_batch(&mut writer, batch).await;
        unfinished.finish(&flushed);
        flushed?;
        writer.flushes_finished = number;
        self.punch_released().await;
        Ok(())
    }

    /// Logs what is not logged, puts the pages that are durable in the log in their places, and makes both durable with
    /// one flush of the host file.
    async fn flush_batch(&self, writer: &mut Writer, batch: Batch) -> Result<()> {
        let in_place = writer.durable_pages();
        self.put_in_place(&in_place).await?;
        self.log_images(writer, &batch.changes).await?;
        writer.sync(&self.file).await?;
        writer.forget(&in_place);
        self.state().finish_batch(batch.freed, batch.epoch, &batch.punched);
        Ok(())
    }

    /// Writes `changes` to the log, in as many entries as they need. A crash may keep any number of the first of them.
    ///
    /// Each entry holds every page that is not in its place, those of the entries before it too, so that it replaces
    /// them: several may be written before one flush makes the last of them durable, and a cut that keeps a later one
    /// without an earlier loses nothing, in whatever order the medium writes them.
    async fn log_images(&self, writer: &mut Writer, changes: &Changes) -> Result<()> {
        // A file that grew is made durable first as well: QEMU's replay does not extend it to the entry's last offset.
        if changes.data_first || (writer.has_grown(&self.file) && !changes.images.is_empty()) {
            writer.sync(&self.file).await?;
        }
        let mut rest = changes.images.as_slice();
        while !rest.is_empty() {
            if !writer.fits(rest) {
                self.settle_logged(writer).await?;
            }
            let (now, later) = rest.split_at(rest.len().min(writer.log().entry_pages_max()));
            writer.add(now);
            if writer.log().pages_max() < writer.pages_count() {
                // Entries that were replaced make room when the newest is durable.
                writer.sync(&self.file).await?;
            }
            let entry = writer.append_entry(&self.file);
            write_log(&self.file, &entry).await?;
            rest = later;
        }
        self.state().images_logged = changes.number;
        Ok(())
    }

    /// Puts every page of the log in its place, durably.
    pub(super) async fn settle_logged(&self, writer: &mut Writer) -> Result<()> {
        writer.sync(&self.file).await?;
        let logged = writer.durable_pages();
        self.put_in_place(&logged).await?;
        writer.sync(&self.file).await?;
        writer.forget(&logged);
        Ok(())
    }

    /// Writes pages to their places in the host file: of each the last of `images`, which are in order of time.
    pub(super) async fn put_in_place(&self, images: &[PageImage]) -> Result<()> {
        let last: BTreeMap<PageNumber, &PageImage> =
            images.iter().map(|image| (image.number, image)).collect();
        let sorted: Vec<_> = last.into_values().collect();
        let runs =
            sorted.chunk_by(|a, b| a.number + 1 == b.number).flat_map(|run| run.chunks(PAGES_PER_WRITE_MAX));
        let writes = runs.map(|run| {
            let mut memory = SgList::new();
            for image in run {
                memory.append(SgList::copy_of(&*image.bytes));
            }
            self.file.write(run[0].offset(), memory, WriteFlags::default())
        });
        let done: Result<()> = join_all(writes).await.into_iter().collect();
        done.context(|| "write metadata to its place".to_owned())?;
        let mut state = self.state();
        for image in sorted {
            state.pages.applied(image);
        }
        Ok(())
    }

    /// Punches released space that no request can touch any more. Space whose punch fails is not used again in this
    /// session; nothing is lost.
    async fn punch_released(&self) {
        let quiet = self.state().take_quiet();
        for range in quiet {
            match self.punch(range).await {
                Ok(()) => self.state().returning.punched.push(range),
                Err(error) => tracing::warn!(error = error.chain(), "space of trimmed blocks stays taken"),
            }
        }
    }

    /// Brings a metadata page into memory.
    pub(super) async fn load_page(&self, number: PageNumber) -> Result<()> {
        let _loading = Loading::begin(self, number);
        let offset = number * PAGE_BYTES as u64;
        let memory = SgList::unspecified(PAGE_BYTES);
        let here = self.file.size().saturating_sub(offset).min(PAGE_BYTES as u64);
        memory.fill(here, PAGE_BYTES as u64 - here, 0);
        self.file
            .read(offset, memory.slice(0, here))
            .await
            .context(|| format!("read the metadata page at {offset:#x}"))?;
        let mut bytes = Box::new([0; PAGE_BYTES]);
        memory.copy_to_slice(0, &mut bytes[..]);
        self.state().pages.insert_read(number, bytes);
        Ok(())
    }
}

/// A read of a metadata page that is under way.
struct Loading<'s> {
    shared: &'s Shared,
    number: PageNumber,
}

impl<'s> Loading<'s> {
    fn begin(shared: &'s Shared, number: PageNumber) -> Self {
        shared.state().pages.begin_load(number);
        Self { shared, number }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.shared.state().pages.end_load(self.number);
    }
}

impl State {
    /// Which taking of images holds all changes made up to now, if they are not in the log yet.
    fn changes_to_log(&self) -> Option<u64> {
        if self.pages.has_dirty() {
            Some(self.images_taken + 1)
        } else {
            (self.images_logged < self.images_taken).then_some(self.images_taken)
        }
    }

    fn take_changes(&mut self) -> Changes {
        self.images_taken += 1;
        Changes {
            number: self.images_taken,
            images: self.pages.take_dirty(),
            data_first: std::mem::take(&mut self.data_before_metadata),
        }
    }

    fn take_batch(&mut self) -> Batch {
        self.flushes_started += 1;
        Batch {
            number: self.flushes_started,
            changes: self.take_changes(),
            freed: std::mem::take(&mut self.returning.freed),
            epoch: self.requests.close_epoch(),
            punched: std::mem::take(&mut self.returning.punched),
        }
    }

    /// Takes note that a batch is durable.
    fn finish_batch(&mut self, freed: Vec<ByteRange>, epoch: Epoch, punched: &[ByteRange]) {
        self.returning.released.extend(freed.into_iter().map(|range| (epoch, range)));
        for range in punched {
            self.space.release(*range);
        }
    }

    /// Takes the released space that no request under way was mapped to, joined where it is adjacent.
    fn take_quiet(&mut self) -> Vec<ByteRange> {
        let requests = &self.requests;
        let (quiet, busy): (Vec<_>, Vec<_>) =
            self.returning.released.drain(..).partition(|(epoch, _)| requests.is_quiet(*epoch));
        self.returning.released = busy;
        let mut ranges: Vec<_> = quiet.into_iter().map(|(_, range)| range).collect();
        ranges.sort_by_key(|range| range.start());
        let mut joined: Vec<ByteRange> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end() == range.start() => {
                    *last = ByteRange::between(last.start(), range.end()).expect("neighbours make a range");
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}
