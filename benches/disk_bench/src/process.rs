//! What the kernel knows of another process: its CPU time and its memory.
#![expect(unsafe_code, reason = "clocks of other processes and the usage of a child come by raw pointers")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

/// CPU time in nanoseconds that the process `pid` has used so far, threads that are gone included.
///
/// The clock is read and not `/proc/PID/task`, because nbdkit's threads end with their connection, and not
/// `/proc/PID/stat`, because that counts ticks of 10 ms.
pub(crate) fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut clock = MaybeUninit::uninit();
    // SAFETY: the pointer is to memory for one clock's number, which is written where 0 is returned.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, clock.as_mut_ptr()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the clock's number was written above; the pointer is to memory for one time.
    let time = unsafe {
        if libc::clock_gettime(clock.assume_init(), time.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        time.assume_init()
    };
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Waits for the end of `child`, and returns whether it succeeded and the most memory that it had resident, in KiB.
pub(crate) fn wait_for_peak_kib(child: &Child) -> io::Result<(bool, u64)> {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::uninit());
    // SAFETY: both pointers are to memory of the right type, which is written where the child's number is returned.
    let usage = unsafe {
        if libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        usage.assume_init()
    };
    Ok((status == 0, usage.ru_maxrss as u64))
}

/// Makes the kernel end the command's process when we end, however that comes.
pub(crate) fn end_with_us(command: &mut Command) {
    // SAFETY: between fork and exec there is one system call, and nothing is allocated.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
}

/// Resident memory of a process in KiB: now, and the most that it ever was.
pub(crate) fn resident_kib(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .with_context(|| format!("{path} has no {name}"))?
            .parse()
            .with_context(|| format!("parse {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
