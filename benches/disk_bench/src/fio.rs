//! fio's NBD engine as the client.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::server::Server;
use crate::steady::{Counted, Workload};

/// Runs `workload` on an NBD server for `time`. The server's CPU time includes its side of the handshake.
pub(crate) fn run(server: &Server, workload: Workload, size: u64, time: Duration) -> Result<Counted> {
    let direction = match (workload.random, workload.writes) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    };
    let cpu_before_ns = server.cpu_ns()?;
    let output = Command::new("fio")
        .args(["--name=row", "--ioengine=nbd", "--thread", "--norandommap", "--randrepeat=0", "--time_based"])
        .args(["--output-format=json", &format!("--uri={}", server.nbd_uri), &format!("--rw={direction}")])
        .args([format!("--bs={}", workload.bytes), format!("--iodepth={}", workload.depth)])
        .args([format!("--size={size}"), format!("--runtime={}ms", time.as_millis())])
        .output()
        .context("run fio")?;
    let cpu_used_ns = server.cpu_ns()? - cpu_before_ns;
    ensure!(
        output.status.success(),
        "fio on {}: {}: {}",
        server.contender.name(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let (count, elapsed) = parse(&output.stdout, workload.writes)
        .with_context(|| format!("read fio's report on {}", server.contender.name()))?;
    Ok(Counted { count, elapsed, cpu_used_ns })
}

/// Requests and the time that they took, from fio's report, which begins with lines that are not JSON.
fn parse(output: &[u8], writes: bool) -> Result<(u64, Duration)> {
    let start = output.iter().position(|byte| *byte == b'{').context("there is no JSON")?;
    let report: Value = serde_json::from_slice(&output[start..])?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "the job failed: error {}", job["error"]);
    let side = &job[if writes { "write" } else { "read" }];
    let count = side["total_ios"].as_u64().context("there is no count")?;
    let runtime_ms = side["runtime"].as_u64().context("there is no time")?;
    ensure!(count > 0 && runtime_ms > 0, "nothing was done");
    Ok((count, Duration::from_millis(runtime_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_that_was_measured_is_read() {
        let text = br#"fio: connected to NBD server
            {"jobs": [{"error": 0, "read": {"total_ios": 0, "runtime": 0},
                       "write": {"total_ios": 30, "runtime": 1500}}]}"#;
        assert_eq!(parse(text, true).unwrap(), (30, Duration::from_millis(1500)));
        assert!(parse(text, false).is_err());
    }

    #[test]
    fn a_job_that_failed_is_not_a_result() {
        let text = br#"{"jobs": [{"error": 5, "read": {"total_ios": 9, "runtime": 9}}]}"#;
        assert!(parse(text, false).is_err());
    }
}
