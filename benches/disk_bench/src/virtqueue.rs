//! A virtqueue as the client: requests are kept in flight as a guest does it, and the client sleeps for its interrupt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost_user_client::{Client, Command, Shape};

use crate::images::Random;
use crate::server::Server;
use crate::steady::{Counted, Workload};

/// A server that does not answer for so long has failed.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// How often the clock is looked at.
const BATCHES_PER_LOOK: u64 = 16;

/// Runs `workload` on a vhost-user-blk server for `time`.
pub(crate) fn run(server: &Server, workload: Workload, time: Duration) -> Result<Counted> {
    let shape = Shape { buffer_count: workload.depth, buffer_bytes: workload.bytes, ..Shape::default() };
    let mut client = server.connect(shape)?;
    let mut next = commands(workload, client.config()?.capacity.into());
    for buffer in 0..workload.depth {
        client.submit(0, next(), buffer)?;
    }
    let (cpu_before_ns, begun) = (server.cpu_ns()?, Instant::now());
    client.kick(0)?;
    let (mut done, mut count) = (Vec::new(), 0);
    for batch in 1_u64.. {
        wait(server, &mut client, &mut done)?;
        count += done.len() as u64;
        if batch.is_multiple_of(BATCHES_PER_LOOK) && begun.elapsed() >= time {
            break;
        }
        for end in done.drain(..) {
            client.submit(0, next(), end.buffer)?;
        }
        client.kick(0)?;
    }
    let (elapsed, cpu_used_ns) = (begun.elapsed(), server.cpu_ns()? - cpu_before_ns);
    settle(server, &mut client, workload.depth - done.len())?;
    Ok(Counted { count, elapsed, cpu_used_ns })
}

/// Waits until at least one request is done, and refuses one that failed.
pub(crate) fn wait(
    server: &Server,
    client: &mut Client,
    done: &mut Vec<vhost_user_client::Done>,
) -> Result<()> {
    done.clear();
    let name = server.contender.name();
    client.wait(0, TIMEOUT, done).with_context(|| format!("wait for {name}"))?;
    for end in &*done {
        ensure!(end.result == 0, "{name} failed a request: error {}", -end.result);
    }
    Ok(())
}

/// Waits for what is still in flight, so that the next contender has the machine for itself.
pub(crate) fn settle(server: &Server, client: &mut Client, mut in_flight: usize) -> Result<()> {
    let mut done = Vec::new();
    while in_flight > 0 {
        wait(server, client, &mut done)?;
        in_flight -= done.len();
    }
    Ok(())
}

fn commands(workload: Workload, sectors: u64) -> impl FnMut() -> Command {
    let Workload { bytes: len, writes, random, .. } = workload;
    let blocks = sectors * 512 / len as u64;
    let (mut numbers, mut sequence) = (Random::default(), 0..);
    move || {
        let block = if random { Some(numbers.next()) } else { sequence.next() };
        let offset = block.unwrap_or_default() % blocks * len as u64;
        if writes { Command::Write { offset, len } } else { Command::Read { offset, len } }
    }
}
