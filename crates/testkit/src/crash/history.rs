//! The log of a run, and the disks that power cuts in it leave.

use std::sync::{Arc, Mutex};

use block::DevInfo;

use super::Change;
use super::survival::{Pending, Survival, survive};
use crate::{MemDev, Request, SparseBytes};

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change was asked for; from here it may be found after a cut.
    Started {
        /// Which change, counted from 0.
        index: usize,
        /// What it asks.
        request: Request,
    },
    /// A change took effect, so that reads see it and later flushes cover it, or was refused.
    Landed {
        /// Which change, counted from 0.
        index: usize,
        /// What it asks.
        request: Request,
        /// Whether it took effect.
        done: bool,
    },
    /// A flush was asked for.
    FlushStarted,
    /// A flush completed: what landed within the first `covers` events is durable.
    FlushDone {
        /// Number of events before the flush was asked for, itself included.
        covers: usize,
    },
    /// A mark of the test.
    Note(u64),
}

/// The log of a run on a [`super::CrashDev`], from which the disk after a power cut at any point can be had.
///
/// Going through the cuts in ascending order is cheapest: each costs what happened since the last one, plus a clone
/// of the durable image, which shares its pages.
pub struct History {
    info: DevInfo,
    changes: Vec<Arc<Change>>,
    events: Vec<Event>,
    replay: Mutex<Replay>,
}

/// How far apart the points are from which a step back starts again.
const CHECKPOINT_EVENTS: usize = 256;

struct Replay {
    cursor: Cursor,
    /// One for every multiple of [`CHECKPOINT_EVENTS`] that was passed.
    checkpoints: Vec<Cursor>,
}

/// The state of the disk after the first `at` events.
#[derive(Clone)]
struct Cursor {
    at: usize,
    durable: SparseBytes,
    /// Changes that landed and are not durable, in that order, each with the number of events before it landed.
    landed: Vec<(usize, usize)>,
    in_flight: Vec<usize>,
}

impl History {
    pub(super) fn new(
        info: DevInfo,
        initial: SparseBytes,
        changes: Vec<Arc<Change>>,
        events: Vec<Event>,
    ) -> Self {
        let cursor = Cursor { at: 0, durable: initial, landed: Vec::new(), in_flight: Vec::new() };
        let replay = Replay { checkpoints: vec![cursor.clone()], cursor };
        Self { info, changes, events, replay: Mutex::new(replay) }
    }

    /// The log.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Number of events; the last cut.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The cuts that are worth a look, ascending: before everything, at the end, and after each event that changes
    /// what may be found on the disk or what a test has noted.
    ///
    /// A cut is a number of events that have happened. A change that lands alters nothing of what a power cut may
    /// leave, because it may have been found there since its start.
    pub fn cuts(&self) -> Vec<usize> {
        let worth = |event: &Event| match event {
            Event::Started { .. } | Event::FlushDone { .. } | Event::Note(_) => true,
            Event::Landed { .. } | Event::FlushStarted => false,
        };
        let after =
            self.events.iter().enumerate().filter(|(_, event)| worth(event)).map(|(index, _)| index + 1);
        let mut cuts: Vec<usize> = std::iter::once(0).chain(after).chain([self.events.len()]).collect();
        cuts.dedup();
        cuts
    }

    /// The notes among the first `cut` events.
    pub fn notes(&self, cut: usize) -> impl DoubleEndedIterator<Item = u64> {
        self.events[..cut].iter().filter_map(|event| match event {
            Event::Note(note) => Some(*note),
            Event::Started { .. } | Event::Landed { .. } | Event::FlushStarted | Event::FlushDone { .. } => {
                None
            }
        })
    }

    /// The last note among the first `cut` events.
    pub fn last_note(&self, cut: usize) -> Option<u64> {
        self.notes(cut).next_back()
    }

    /// How many changes are pending after the first `cut` events.
    pub fn pending_at(&self, cut: usize) -> usize {
        self.at(cut, |cursor| cursor.landed.len() + cursor.in_flight.len())
    }

    /// The disk that is found after a power cut after the first `cut` events.
    ///
    /// # Panics
    /// If there are not so many events.
    pub fn crash_at(&self, cut: usize, survival: Survival) -> MemDev {
        let (mut image, pending) = self.at(cut, |cursor| (cursor.durable.clone(), self.pending(cursor)));
        survive(&mut image, &pending, survival);
        MemDev::from_image(image, self.info)
    }

    /// The events just before `cut`, one per line, for the message of a failed test.
    pub fn describe(&self, cut: usize) -> String {
        const SHOWN_EVENTS_MAX: usize = 24;
        let first = cut.saturating_sub(SHOWN_EVENTS_MAX);
        let mut text = format!("cut after event {cut} of {}:\n", self.events.len());
        for (index, event) in self.events[..cut].iter().enumerate().skip(first) {
            text.push_str(&format!("  {index:5} {event:?}\n"));
        }
        text
    }

    fn pending<'a>(&'a self, cursor: &Cursor) -> Vec<Pending<'a>> {
        let landed =
            cursor.landed.iter().map(|&(index, _)| Pending { change: &self.changes[index], landed: true });
        let in_flight =
            cursor.in_flight.iter().map(|&index| Pending { change: &self.changes[index], landed: false });
        landed.chain(in_flight).collect()
    }

    fn at<T>(&self, cut: usize, with: impl FnOnce(&Cursor) -> T) -> T {
        assert!(cut <= self.events.len(), "cut {cut} lies within the {} events", self.events.len());
        let mut replay = self.replay.lock().expect("a replay panicked before");
        let replay = &mut *replay;
        if cut < replay.cursor.at {
            let nearest = (cut / CHECKPOINT_EVENTS).min(replay.checkpoints.len() - 1);
            replay.cursor = replay.checkpoints[nearest].clone();
        }
        while replay.cursor.at < cut {
            let event = &self.events[replay.cursor.at];
            replay.cursor.step(event, &self.changes);
            if replay.cursor.at == replay.checkpoints.len() * CHECKPOINT_EVENTS {
                replay.checkpoints.push(replay.cursor.clone());
            }
        }
        with(&replay.cursor)
    }
}

impl Cursor {
    fn step(&mut self, event: &Event, changes: &[Arc<Change>]) {
        match *event {
            Event::Started { index, .. } => self.in_flight.push(index),
            Event::Landed { index, done, .. } => {
                self.in_flight.retain(|&other| other != index);
                if done {
                    self.landed.push((index, self.at));
                }
            }
            Event::FlushDone { covers } => self.make_durable(covers, changes),
            Event::FlushStarted | Event::Note(_) => {}
        }
        self.at += 1;
    }

    fn make_durable(&mut self, covers: usize, changes: &[Arc<Change>]) {
        // Changes land in the order of the log, so what the flush covers comes before what it does not.
        let covered = self.landed.partition_point(|&(_, landed_at)| landed_at < covers);
        for (index, _) in self.landed.drain(..covered) {
            changes[index].apply(&mut self.durable, changes[index].range());
        }
    }
}
