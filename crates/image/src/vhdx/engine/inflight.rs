//! Which I/O may still touch a place in the host file.
//!
//! Space that the map no longer refers to can be punched and reused only when every request that was mapped before
//! is done: a late write would land in another block, a late read would return another block's data. Requests are
//! counted by epoch; freeing space closes the epoch.

use std::collections::VecDeque;

/// A point in the order of requests and releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Epoch(u64);

/// Requests under way, by the epoch in which they began.
#[derive(Debug)]
pub(super) struct InFlight {
    first: u64,
    counts: VecDeque<usize>,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self { first: 0, counts: VecDeque::from([0]) }
    }

    /// Counts a request in.
    pub(super) fn begin(&mut self) -> Epoch {
        *self.counts.back_mut().expect("there is always a current epoch") += 1;
        self.current()
    }

    /// Counts the request out that `begin` gave `epoch` to.
    pub(super) fn end(&mut self, epoch: Epoch) {
        let index = usize::try_from(epoch.0 - self.first).expect("epochs in flight are few");
        self.counts[index] -= 1;
        while self.counts.len() > 1 && self.counts[0] == 0 {
            self.counts.pop_front();
            self.first += 1;
        }
    }

    /// Closes the current epoch; [`Self::is_quiet`] tells when everything that began before is done.
    pub(super) fn close_epoch(&mut self) -> Epoch {
        let closed = self.current();
        if self.counts.len() == 1 && self.counts[0] == 0 {
            // Nothing is in the closed epoch, so its counter serves the next one.
            self.first += 1;
        } else {
            self.counts.push_back(0);
        }
        closed
    }

    /// Whether all requests of `epoch` and of those before it are done.
    pub(super) fn is_quiet(&self, epoch: Epoch) -> bool {
        let oldest_busy = self.counts.iter().position(|&count| count > 0);
        oldest_busy.is_none_or(|index| self.first + index as u64 > epoch.0)
    }

    /// The epoch that requests begin in now.
    pub(super) fn current(&self) -> Epoch {
        Epoch(self.first + self.counts.len() as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_quiet_when_all_that_began_before_its_close_has_ended() {
        let mut requests = InFlight::new();
        let early = requests.begin();
        let closed = requests.close_epoch();
        let late = requests.begin();
        assert!(!requests.is_quiet(closed));
        requests.end(early);
        assert!(requests.is_quiet(closed));
        let closed_later = requests.close_epoch();
        assert!(!requests.is_quiet(closed_later));
        requests.end(late);
        assert!(requests.is_quiet(closed_later));
    }

    #[test]
    fn an_older_request_keeps_later_epochs_busy() {
        let mut requests = InFlight::new();
        let early = requests.begin();
        requests.close_epoch();
        let later = requests.close_epoch();
        assert!(!requests.is_quiet(later));
        requests.end(early);
        assert!(requests.is_quiet(later));
    }
}
