//! The cache of metadata pages: 4 KiB pieces of the BAT and of the sector bitmap blocks.
//!
//! A page that was changed is *dirty* until a flush takes its image for the log, and *logged* until that image was
//! written to its place in the file. Only pages that are neither may leave the cache, and none that a read of the file
//! is under way for: what that read brings may be older than the page, and must find it here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use block::ByteRange;

/// Size of a page, which is also the unit of the log.
pub(super) const PAGE_BYTES: usize = 4096;

/// Pages kept when they could be dropped: 32 MiB of them.
const CLEAN_PAGES_MAX: usize = 8192;

/// The number of a page: its offset in the host file over [`PAGE_BYTES`].
pub(super) type PageNumber = u64;

pub(super) type PageBytes = [u8; PAGE_BYTES];

/// What a page held when a flush took it.
#[derive(Clone, Debug)]
pub(super) struct PageImage {
    pub(super) number: PageNumber,
    pub(super) bytes: Box<PageBytes>,
    /// Tells this image from earlier and later ones of the same page.
    pub(super) version: u64,
}

impl PageImage {
    /// Where the page lies in the host file.
    pub(super) fn offset(&self) -> u64 {
        self.number * PAGE_BYTES as u64
    }
}

struct Page {
    bytes: Box<PageBytes>,
    /// The image that was taken last and is not in its place yet.
    logged: Option<u64>,
}

/// The pages in memory. Owned by the engine's state, behind its lock.
pub(super) struct Pages {
    bat_first: PageNumber,
    bat: Vec<Option<Page>>,
    bitmaps: HashMap<PageNumber, Page>,
    dirty: BTreeSet<PageNumber>,
    /// Loaded pages in the order of loading, to drop the oldest.
    order: VecDeque<PageNumber>,
    /// Pages that reads of the file are under way for, with their number.
    loading: BTreeMap<PageNumber, usize>,
    versions: u64,
}

impl Pages {
    /// An empty cache for a file whose BAT lies at `bat`.
    pub(super) fn new(bat: ByteRange) -> Self {
        let page = PAGE_BYTES as u64;
        let count = usize::try_from(bat.len().div_ceil(page)).expect("a BAT is at most 513 MiB");
        Self {
            bat_first: bat.start() / page,
            bat: std::iter::repeat_with(|| None).take(count).collect(),
            bitmaps: HashMap::new(),
            dirty: BTreeSet::new(),
            order: VecDeque::new(),
            loading: BTreeMap::new(),
            versions: 0,
        }
    }

    /// The page's bytes, if it is in memory.
    pub(super) fn get(&self, number: PageNumber) -> Option<&PageBytes> {
        self.page(number).map(|page| &*page.bytes)
    }

    /// The page's bytes to change, if it is in memory; marks it dirty.
    pub(super) fn change(&mut self, number: PageNumber) -> Option<&mut PageBytes> {
        let slot = self.bat_slot(number);
        let page = match slot {
            Some(index) => self.bat[index].as_mut(),
            None => self.bitmaps.get_mut(&number),
        }?;
        self.dirty.insert(number);
        Some(&mut page.bytes)
    }

    /// Notes that a page is about to be read from the file; if it comes in meanwhile, it stays until the read has ended.
    pub(super) fn begin_load(&mut self, number: PageNumber) {
        *self.loading.entry(number).or_default() += 1;
    }

    /// Notes that a read that [`Self::begin_load`] announced has ended.
    pub(super) fn end_load(&mut self, number: PageNumber) {
        let count = self.loading.get_mut(&number).expect("a read that ends has begun");
        *count -= 1;
        if *count == 0 {
            self.loading.remove(&number);
        }
    }

    /// Takes in a page that was read from the file, unless it came in by another way meanwhile; an old page may go.
    pub(super) fn insert_read(&mut self, number: PageNumber, bytes: Box<PageBytes>) {
        self.drop_oldest();
        self.insert(number, bytes);
    }

    /// Takes in a page without letting another go, so that what a caller has looked up stays.
    pub(super) fn insert(&mut self, number: PageNumber, bytes: Box<PageBytes>) {
        if self.get(number).is_some() {
            return;
        }
        self.order.push_back(number);
        let page = Page { bytes, logged: None };
        match self.bat_slot(number) {
            Some(index) => self.bat[index] = Some(page),
            None => drop(self.bitmaps.insert(number, page)),
        }
    }

    /// Whether a page was changed since its last image was taken.
    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes the images of all dirty pages, in the order in which they must reach the log.
    ///
    /// A crash may keep only the first of them. Bitmap pages therefore come before BAT pages, and BAT pages from the
    /// last to the first: a chunk's bitmap entry follows its payload entries, so a PARTIALLY_PRESENT block never
    /// appears before its bitmap.
    pub(super) fn take_dirty(&mut self) -> Vec<PageImage> {
        self.versions += 1;
        let version = self.versions;
        let dirty = std::mem::take(&mut self.dirty);
        let (bat, bitmaps): (Vec<_>, Vec<_>) =
            dirty.into_iter().partition(|&number| self.bat_slot(number).is_some());
        let order = bitmaps.into_iter().chain(bat.into_iter().rev());
        order.map(|number| self.image(number, version)).collect()
    }

    /// Notes that `image` is in its place in the file.
    pub(super) fn applied(&mut self, image: &PageImage) {
        if let Some(page) = self.page_mut(image.number)
            && page.logged == Some(image.version)
        {
            page.logged = None;
        }
    }

    fn image(&mut self, number: PageNumber, version: u64) -> PageImage {
        let page = self.page_mut(number).expect("a dirty page stays in memory");
        page.logged = Some(version);
        PageImage { number, bytes: page.bytes.clone(), version }
    }

    fn bat_slot(&self, number: PageNumber) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.bat_first)?).ok()?;
        (index < self.bat.len()).then_some(index)
    }

    fn page(&self, number: PageNumber) -> Option<&Page> {
        match self.bat_slot(number) {
            Some(index) => self.bat[index].as_ref(),
            None => self.bitmaps.get(&number),
        }
    }

    fn page_mut(&mut self, number: PageNumber) -> Option<&mut Page> {
        match self.bat_slot(number) {
            Some(index) => self.bat[index].as_mut(),
            None => self.bitmaps.get_mut(&number),
        }
    }

    /// Makes room for one page by dropping the oldest that may go; keeps all where none may.
    fn drop_oldest(&mut self) {
        if self.order.len() < CLEAN_PAGES_MAX {
            return;
        }
        for _ in 0..self.order.len() {
            let Some(number) = self.order.pop_front() else { return };
            let busy = self.dirty.contains(&number)
                || self.loading.contains_key(&number)
                || self.page(number).is_some_and(|page| page.logged.is_some());
            if busy {
                self.order.push_back(number);
                continue;
            }
            match self.bat_slot(number) {
                Some(index) => self.bat[index] = None,
                None => drop(self.bitmaps.remove(&number)),
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages {
        let mut pages = Pages::new(ByteRange::new(10 * 4096, 4 * 4096).unwrap());
        for number in [10, 11, 13, 500] {
            pages.insert(number, Box::new([0; PAGE_BYTES]));
        }
        pages
    }

    #[test]
    fn bitmaps_are_logged_before_the_bat_and_the_bat_backwards() {
        let mut pages = pages();
        for number in [10, 500, 13, 11] {
            pages.change(number).unwrap()[0] = 1;
        }
        let order: Vec<_> = pages.take_dirty().iter().map(|image| image.number).collect();
        assert_eq!(order, [500, 13, 11, 10]);
        assert!(pages.take_dirty().is_empty());
    }

    #[test]
    fn a_page_stays_until_its_last_image_is_in_place() {
        let mut pages = pages();
        pages.change(10).unwrap()[0] = 1;
        let first = pages.take_dirty();
        pages.change(10).unwrap()[0] = 2;
        let second = pages.take_dirty();
        pages.applied(&first[0]);
        for number in 1000..1000 + 2 * CLEAN_PAGES_MAX as u64 {
            pages.insert_read(number, Box::new([0; PAGE_BYTES]));
        }
        assert_eq!(pages.get(10).map(|bytes| bytes[0]), Some(2), "the second image is not in place yet");
        assert!(pages.get(11).is_none(), "a clean page makes room");
        pages.applied(&second[0]);
        for number in 100_000..100_000 + 2 * CLEAN_PAGES_MAX as u64 {
            pages.insert_read(number, Box::new([0; PAGE_BYTES]));
        }
        assert!(pages.get(10).is_none());
    }
}
