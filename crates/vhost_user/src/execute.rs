//! Has requests done by the disk.

use block::{Buffer, ByteRange, Disk, ErrorKind, SgList, WriteFlags, ZeroFlags};

use crate::config::BlockConfig;
use crate::config::DeviceOptions;
use crate::request::{ID_BYTES, Operation, Status, ZeroRange};

/// What is copied at a time where the guest's memory is not aligned as the disk needs it.
const BOUNCE_BYTES_MAX: u64 = 1 << 20;

/// A disk as the target of requests.
pub struct Target {
    disk: Disk,
    id: [u8; ID_BYTES],
    read_only: bool,
    durable_writes: bool,
}

impl Target {
    /// `disk`, as `options` show it. With `durable_writes` a write is answered only when it is durable.
    pub fn new(disk: Disk, options: &DeviceOptions, durable_writes: bool) -> Self {
        let config = BlockConfig::new(disk.clone(), options.clone());
        Self { id: config.id(), read_only: config.read_only(), disk, durable_writes }
    }

    /// Does `operation` and gives the status to answer with. What fails is logged here.
    pub async fn execute(&self, operation: Operation) -> Status {
        if self.read_only && changes(&operation) {
            return Status::IoError;
        }
        let done = match operation {
            Operation::Read { offset, into } => self.read(offset, into).await,
            Operation::Write { offset, from } => self.write(offset, from).await,
            Operation::Flush => self.disk.flush().await,
            Operation::GetId { into } => {
                let len = into.len().min(ID_BYTES as u64);
                into.copy_from_slice(0, &self.id[..len as usize]);
                Ok(())
            }
            Operation::Discard(ranges) => self.discard(&ranges).await,
            Operation::WriteZeroes(ranges) => self.write_zeroes(&ranges).await,
        };
        done.map_or_else(|error| status_of(&error), |()| Status::Ok)
    }

    async fn read(&self, offset: u64, into: SgList) -> block::Result<()> {
        if self.is_aligned(&into) {
            return self.disk.read(offset, into).await;
        }
        let mut done = 0;
        while done < into.len() {
            let count = (into.len() - done).min(BOUNCE_BYTES_MAX);
            let bytes = self.disk.read_vec(offset + done, count as usize).await?;
            into.copy_from_slice(done, &bytes);
            done += count;
        }
        Ok(())
    }

    async fn write(&self, offset: u64, from: SgList) -> block::Result<()> {
        let flags = WriteFlags { fua: self.durable_writes };
        if self.is_aligned(&from) {
            return self.disk.write(offset, from, flags).await;
        }
        let mut done = 0;
        while done < from.len() {
            let count = (from.len() - done).min(BOUNCE_BYTES_MAX);
            let mut buffer = Buffer::unspecified(count as usize);
            from.copy_to_slice(done, &mut buffer);
            self.disk.write(offset + done, buffer.into_sg(), flags).await?;
            done += count;
        }
        Ok(())
    }

    async fn discard(&self, ranges: &[ZeroRange]) -> block::Result<()> {
        for &ZeroRange { range, .. } in ranges {
            self.check_inside(range)?;
            self.disk.discard(range).await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, ranges: &[ZeroRange]) -> block::Result<()> {
        for &ZeroRange { range, may_unmap } in ranges {
            self.check_inside(range)?;
            let flags = ZeroFlags { fua: self.durable_writes, may_unmap, fast_only: false };
            self.disk.write_zeroes(range, flags).await?;
        }
        Ok(())
    }

    /// Refuses a request of several ranges before the first of them is done, where a later one is out of range.
    fn check_inside(&self, range: ByteRange) -> block::Result<()> {
        if range.end() <= self.disk.size() {
            return Ok(());
        }
        let message = format!("{range} ends beyond the disk's {:#x} bytes", self.disk.size());
        Err(block::BlockError::new(ErrorKind::OutOfRange, message))
    }

    fn is_aligned(&self, list: &SgList) -> bool {
        let align = self.disk.info().memory_align as usize;
        align <= 1 || list.is_aligned(align)
    }
}

fn changes(operation: &Operation) -> bool {
    match operation {
        Operation::Read { .. } | Operation::Flush | Operation::GetId { .. } => false,
        Operation::Write { .. } | Operation::Discard(_) | Operation::WriteZeroes(_) => true,
    }
}

/// What the guest is told of an error. The protocol has no codes for the reasons, so they are logged.
fn status_of(error: &block::BlockError) -> Status {
    match error.kind() {
        ErrorKind::Unsupported => Status::Unsupported,
        // What the guest got wrong is the guest's affair.
        ErrorKind::OutOfRange | ErrorKind::Misaligned | ErrorKind::ReadOnly => {
            tracing::debug!(error = %error.chain(), "refused a request");
            Status::IoError
        }
        ErrorKind::NoSpace
        | ErrorKind::Corrupt
        | ErrorKind::Poisoned
        | ErrorKind::Busy
        | ErrorKind::NotFound
        | ErrorKind::Io => {
            tracing::error!(error = %error.chain(), "a request failed");
            Status::IoError
        }
    }
}
