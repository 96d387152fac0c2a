//! Measures vhost-user-blk servers side by side: `vhost_user_bench NAME=SOCKET=PID...`.
//!
//! Each workload is run on one server after the other, several rounds over, so that what else the machine does hits
//! all of them alike. Printed are medians: requests per second, latency, what the server's process spent on the CPU
//! per request, and how the first server compares with each of the others. `SECONDS_PER_RUN` (1.5) and `ROUNDS` (5)
//! in the environment change how long it takes, `ONLY` picks the workloads whose names contain it.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vhost_user_client::{Client, Command, Done, Shape};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How often the clock is looked at.
const BATCHES_PER_LOOK: u32 = 16;

/// A server under test.
struct Server {
    name: String,
    socket: PathBuf,
    process: u32,
}

#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    bytes: usize,
    depth: usize,
    writes: bool,
    random: bool,
}

/// What one run has shown.
#[derive(Clone, Copy)]
struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    server_us: f64,
}

const WORKLOADS: [Workload; 6] = [
    Workload { name: "4k random read, depth 1", bytes: 4096, depth: 1, writes: false, random: true },
    Workload { name: "4k random read, depth 32", bytes: 4096, depth: 32, writes: false, random: true },
    Workload { name: "4k random write, depth 1", bytes: 4096, depth: 1, writes: true, random: true },
    Workload { name: "4k random write, depth 32", bytes: 4096, depth: 32, writes: true, random: true },
    Workload { name: "1M sequential read, depth 4", bytes: 1 << 20, depth: 4, writes: false, random: false },
    Workload { name: "1M sequential write, depth 4", bytes: 1 << 20, depth: 4, writes: true, random: false },
];

fn main() -> Result<(), Box<dyn Error>> {
    let servers: Vec<Server> = std::env::args().skip(1).map(|text| parse(&text)).collect::<Result<_, _>>()?;
    let [first, others @ ..] = &servers[..] else {
        return Err("usage: vhost_user_bench NAME=SOCKET=PID...".into());
    };
    let run_time = Duration::from_secs_f64(number("SECONDS_PER_RUN", 1.5)?);
    let rounds = number("ROUNDS", 5.0)? as usize;
    let only = std::env::var("ONLY").unwrap_or_default();
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&only)) {
        println!("{}", workload.name);
        let mut samples: Vec<Vec<Sample>> = servers.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (server, samples) in servers.iter().zip(&mut samples) {
                samples.push(run(server, *workload, run_time)?);
            }
        }
        let medians: Vec<Sample> = samples.iter().map(|samples| median(samples)).collect();
        for (server, sample) in servers.iter().zip(&medians) {
            println!(
                "  {:24} {:9.0} /s   p50 {:7.1} us   p99 {:7.1} us   server {:6.2} us/request",
                server.name, sample.per_second, sample.p50_us, sample.p99_us, sample.server_us
            );
        }
        for (server, sample) in others.iter().zip(&medians[1..]) {
            println!(
                "  {} / {}: throughput {:.2}, server time {:.2}",
                first.name,
                server.name,
                medians[0].per_second / sample.per_second,
                medians[0].server_us / sample.server_us
            );
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Server, Box<dyn Error>> {
    let mut parts = text.split('=');
    let (Some(name), Some(socket), Some(process)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{text} is not NAME=SOCKET=PID").into());
    };
    Ok(Server { name: name.into(), socket: socket.into(), process: process.parse()? })
}

fn number(name: &str, default: f64) -> Result<f64, Box<dyn Error>> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}

fn run(server: &Server, workload: Workload, run_time: Duration) -> Result<Sample, Box<dyn Error>> {
    let Workload { bytes, depth, .. } = workload;
    let shape = Shape { buffer_count: depth, buffer_bytes: bytes, ..Shape::default() };
    let mut client = Client::connect(&server.socket, shape)?;
    let blocks = u64::from(client.config()?.capacity) * 512 / bytes as u64;
    let mut next = commands(workload, blocks);
    let mut begun = vec![Instant::now(); depth];
    let mut latencies_ns = Vec::new();
    for (buffer, begun) in begun.iter_mut().enumerate() {
        *begun = Instant::now();
        client.submit(0, next(), buffer)?;
    }
    client.kick(0)?;
    let cpu_before_ns = cpu_ns(server.process)?;
    let (start, mut batches) = (Instant::now(), 0);
    let mut done: Vec<Done> = Vec::new();
    loop {
        done.clear();
        client.wait(0, TIMEOUT, &mut done)?;
        let now = Instant::now();
        for end in &done {
            if end.result != 0 {
                return Err(format!("{} failed a request: {}", server.name, end.result).into());
            }
            latencies_ns.push((now - begun[end.buffer]).as_nanos() as u32);
            begun[end.buffer] = now;
            client.submit(0, next(), end.buffer)?;
        }
        client.kick(0)?;
        batches += 1;
        if batches % BATCHES_PER_LOOK == 0 && now - start > run_time {
            break;
        }
    }
    let (elapsed, count) = (start.elapsed(), latencies_ns.len());
    let cpu_used_ns = cpu_ns(server.process)? - cpu_before_ns;
    latencies_ns.sort_unstable();
    let percentile_us = |percent: usize| f64::from(latencies_ns[(count - 1) * percent / 100]) / 1e3;
    Ok(Sample {
        per_second: count as f64 / elapsed.as_secs_f64(),
        p50_us: percentile_us(50),
        p99_us: percentile_us(99),
        server_us: cpu_used_ns as f64 / 1e3 / count as f64,
    })
}

fn commands(workload: Workload, blocks: u64) -> impl FnMut() -> Command {
    let Workload { bytes: len, writes, random, .. } = workload;
    let (mut state, mut at) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        at += 1;
        let offset = if random { state } else { at } % blocks * len as u64;
        if writes { Command::Write { offset, len } } else { Command::Read { offset, len } }
    }
}

/// CPU time of a process's threads so far.
fn cpu_ns(process: u32) -> Result<u64, Box<dyn Error>> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let line = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        total += line.split_whitespace().next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(total)
}

fn median(samples: &[Sample]) -> Sample {
    let of = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        per_second: of(|sample| sample.per_second),
        p50_us: of(|sample| sample.p50_us),
        p99_us: of(|sample| sample.p99_us),
        server_us: of(|sample| sample.server_us),
    }
}
