//! Making committed changes durable: images of the changed pages into the log, then one flush of the host file.

use block::{ByteRange, Result, ResultExt, SgList, WriteFlags};
use futures_util::future::{join, join_all};

use super::Shared;
use super::inflight::Epoch;
use super::pages::{PAGE_BYTES, PageImage, PageNumber};
use super::session::{Writer, write_log};
use super::state::{Session, State};

/// Neighbouring pages that go to the host file in one write at most.
const PAGES_PER_WRITE_MAX: usize = 256;

/// What a flush takes from the state: everything that was committed before it.
struct Batch {
    number: u64,
    images: Vec<PageImage>,
    /// The data that the images refer to must be durable before them.
    data_first: bool,
    freed: Vec<ByteRange>,
    /// Requests that began before the batch was taken.
    epoch: Epoch,
    punched: Vec<ByteRange>,
}

impl Shared {
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
        let batch = self.state().take_batch();
        let number = batch.number;
        match self.flush_batch(&mut writer, batch).await {
            Ok(()) => writer.flushes_finished = number,
            Err(error) => {
                self.poison(&error);
                return Err(error);
            }
        }
        self.punch_released().await;
        Ok(())
    }

    async fn flush_batch(&self, writer: &mut Writer, batch: Batch) -> Result<()> {
        if batch.images.is_empty() {
            writer.sync(&self.file).await?;
        } else {
            if batch.data_first {
                writer.sync(&self.file).await?;
            }
            self.log_pages(writer, &batch.images).await?;
        }
        self.state().finish_batch(batch.freed, batch.epoch, &batch.punched);
        Ok(())
    }

    /// Puts `images` into the log, durably: in one entry, or in several one after the other where they need more room.
    async fn log_pages(&self, writer: &mut Writer, images: &[PageImage]) -> Result<()> {
        let mut rest = images;
        while !rest.is_empty() {
            rest = self.log_entry(writer, rest).await?;
        }
        Ok(())
    }

    /// Puts as many `images` into the log as an entry takes, and gives the rest. The pages of the entry before go to
    /// their places meanwhile; the flush that makes this entry durable makes them durable there, and theirs retires.
    async fn log_entry<'i>(&self, writer: &mut Writer, images: &'i [PageImage]) -> Result<&'i [PageImage]> {
        let earlier = std::mem::take(&mut writer.logged);
        let sizes = writer.file_sizes(&self.file);
        let log = writer.log.as_mut().expect("the session has a log");
        let retire_count = log.live_count();
        let room = log.pages_max();
        assert!(room > 0, "the log has room for an entry beside the two before it");
        let (now, later) = images.split_at(room.min(images.len()));
        let entry = log.append(now, sizes);
        let (written, in_place) = join(write_log(&self.file, &entry), self.put_in_place(&earlier)).await;
        written.and(in_place)?;
        writer.sync(&self.file).await?;
        let log = writer.log.as_mut().expect("the session has a log");
        log.note_durable();
        log.retire(retire_count);
        writer.logged = now.to_vec();
        Ok(later)
    }

    /// Writes pages to their places in the host file.
    pub(super) async fn put_in_place(&self, images: &[PageImage]) -> Result<()> {
        let mut sorted: Vec<_> = images.iter().collect();
        sorted.sort_by_key(|image| image.number);
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
        for image in images {
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

impl State {
    fn take_batch(&mut self) -> Batch {
        self.flushes_started += 1;
        Batch {
            number: self.flushes_started,
            images: self.pages.take_dirty(),
            data_first: std::mem::take(&mut self.data_before_metadata),
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
