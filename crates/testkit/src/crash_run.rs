//! A workload on a crash disk with the model at every step, and the check of every power cut in it.

use std::cell::RefCell;
use std::sync::Arc;

use block::Disk;

use crate::{CrashDev, History, Mismatch, Model, Op, Runner, Survival};

/// A run of random requests on what stands on a [`CrashDev`], which can be cut anywhere afterwards.
///
/// ```
/// use std::sync::Arc;
/// use block::Disk;
/// use testkit::{CrashDev, CrashRun, MemDev, Model, Shape, SparseBytes, block_on};
///
/// // A real test puts a format or a layer on the host disk, here and in the closure.
/// let host = Arc::new(CrashDev::slow(SparseBytes::new(1 << 20), MemDev::INFO, 1));
/// let disk = Disk::from_arc(host.clone());
/// let ops = Shape::of(&disk).ops(1, 50);
/// block_on(async {
///     let run = CrashRun::record(&host, &disk, Model::new(disk.size(), disk.info()), &ops, 4, 1).await.unwrap();
///     run.check_every_cut(async |host| Ok(host)).await.unwrap();
/// });
/// ```
pub struct CrashRun {
    history: History,
    /// The model after each step; the number that was noted is the index.
    models: Vec<Model>,
}

impl CrashRun {
    /// Runs `ops` on `disk`, which stands on `host` and which `model` describes, with up to `depth` in flight.
    ///
    /// Notes in the host's log from before would be taken for steps: the test must not have set any.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub async fn record(
        host: &Arc<CrashDev>,
        disk: &Disk,
        mut model: Model,
        ops: &[Op],
        depth: usize,
        seed: u64,
    ) -> Result<Self, Mismatch> {
        let models = RefCell::new(Vec::new());
        let step = |model: &Model| {
            host.note(models.borrow().len() as u64);
            models.borrow_mut().push(model.clone());
        };
        step(&model);
        Runner::new(disk, &mut model).depth(depth, seed).on_step(step).run(ops).await?;
        Ok(Self { history: host.history(), models: models.into_inner() })
    }

    /// The host's log.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What the disk may hold after `cut`; `None` before the run, when the host was still being made ready.
    pub fn model_at(&self, cut: usize) -> Option<&Model> {
        self.history.last_note(cut).map(|note| &self.models[note as usize])
    }

    /// Opens with `open` what a cut leaves on the host, and holds the content against the model.
    ///
    /// # Errors
    /// What `open` says, or the first block that the contract does not allow; with the events before the cut.
    pub async fn check(
        &self,
        cut: usize,
        survival: Survival,
        open: impl AsyncFn(Disk) -> Result<Disk, String>,
    ) -> Result<(), String> {
        let Some(model) = self.model_at(cut) else { return Ok(()) };
        let checked = match open(Disk::new(self.history.crash_at(cut, survival))).await {
            Ok(disk) => {
                model.check_after_crash(&disk).await.map(|_| ()).map_err(|mismatch| mismatch.to_string())
            }
            Err(why) => Err(format!("open what the crash left: {why}")),
        };
        checked.map_err(|why| format!("{survival:?}: {why}\n{}", self.history.describe(cut)))
    }

    /// Checks every cut with the pending changes lost, kept, killed with their program, reordered and torn, and returns
    /// how many disks that were.
    ///
    /// # Errors
    /// As [`Self::check`], for the first that fails.
    pub async fn check_every_cut(
        &self,
        open: impl AsyncFn(Disk) -> Result<Disk, String>,
    ) -> Result<usize, String> {
        let mut count = 0;
        // A block that the guest may count on is not torn: its size is that of the medium's sectors, or a medium with
        // smaller ones could not serve it.
        let unit_bytes = self.models.first().map_or(512, Model::block_bytes).max(512);
        for cut in self.history.cuts() {
            let seed = cut as u64;
            for survival in [
                Survival::Nothing,
                Survival::All,
                Survival::Killed { seed },
                Survival::Subset { seed },
                Survival::Torn { seed, unit_bytes },
                Survival::Torn { seed, unit_bytes: 4096 },
            ] {
                self.check(cut, survival, &open).await?;
                count += 1;
            }
        }
        Ok(count)
    }
}
