//! Operations through the ring and through the pool, below `HostFile` and its inline paths.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;

use block::{Buffer, SgList};

use super::*;
use crate::lock::LockedFd;
use crate::op::{OpenFile, Request};
use crate::ring::OPS_MAX;
use crate::sys::Direction;
use crate::{block_on, spawn};

/// Runs `check` on the ring, which this host must have for the test to mean something, and on the pool.
fn on_each_engine(check: fn()) {
    std::thread::spawn(check).join().expect("the check passes on the ring");
    let on_pool = move || {
        use_threads();
        check();
    };
    std::thread::spawn(on_pool).join().expect("the check passes on the pool");
}

fn file_of(bytes: &[u8]) -> Arc<OpenFile> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    Arc::new(OpenFile::new(LockedFd::unmarked(file.into())))
}

fn read(file: &OpenFile, offset: u64, memory: SgList) -> Submission {
    transfer(file, Direction::Read, offset, memory)
}

fn write(file: &OpenFile, offset: u64, memory: SgList) -> Submission {
    transfer(file, Direction::Write, offset, memory)
}

fn transfer(file: &OpenFile, direction: Direction, offset: u64, memory: SgList) -> Submission {
    let request = Request::Transfer { direction, offset, memory, dsync: false };
    submit(Op { file: file.hold(), request })
}

/// Polls `future` once, which queues its operation.
async fn poll_once<F: Future + Unpin>(future: &mut F) {
    poll_fn(|context| {
        let _ = Pin::new(&mut *future).poll(context);
        Poll::Ready(())
    })
    .await;
}

#[test]
fn this_host_has_a_ring_for_the_other_tests() {
    assert!(completion_event().unwrap().is_some(), "io_uring is refused here, so the ring is not tested");
}

#[test]
fn bytes_written_are_read_back_in_one_and_in_many_segments() {
    on_each_engine(|| {
        block_on(async {
            let file = file_of(&[]);
            let one = SgList::copy_of(b"abcdefgh");
            assert_eq!(write(&file, 3, one.clone()).await.0.unwrap(), 8);
            let mut many = SgList::new();
            many.append(one.slice(2, 3));
            many.append(one.slice(0, 1));
            many.append(one.slice(7, 1));
            assert_eq!(write(&file, 11, many).await.0.unwrap(), 5);

            let mut into = SgList::unspecified(6);
            into.append(SgList::unspecified(10));
            let (result, op) = read(&file, 0, into.clone()).await;
            assert_eq!(result.unwrap(), 16);
            drop(op);
            assert_eq!(into.to_vec(), b"\0\0\0abcdefghcdeah");
        });
    });
}

#[test]
fn a_read_at_the_end_of_the_file_is_short() {
    on_each_engine(|| {
        let file = file_of(b"12345");
        block_on(async {
            assert_eq!(read(&file, 2, SgList::unspecified(100)).await.0.unwrap(), 3);
            assert_eq!(read(&file, 5, SgList::unspecified(100)).await.0.unwrap(), 0);
        });
    });
}

#[test]
fn an_error_of_the_host_arrives_as_it_is() {
    on_each_engine(|| {
        let (pipe, _writer) = std::io::pipe().unwrap();
        let pipe = OpenFile::new(LockedFd::unmarked(pipe.into()));
        let result = block_on(submit(Op { file: pipe.hold(), request: Request::Sync })).0;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    });
}

/// Proves that more operations than slots, and than submission entries, all run, each with its own memory.
#[test]
fn ten_times_more_operations_than_slots_all_complete() {
    on_each_engine(|| {
        let count = 10 * OPS_MAX;
        let content: Vec<u8> = (0..count).flat_map(|index| (index as u32).to_le_bytes()).collect();
        let file = file_of(&content);
        block_on(async move {
            let start = |index: usize| {
                let file = file.clone();
                spawn(async move {
                    let memory = SgList::unspecified(4);
                    assert_eq!(read(&file, 4 * index as u64, memory.clone()).await.0.unwrap(), 4);
                    assert_eq!(memory.to_vec(), (index as u32).to_le_bytes());
                })
            };
            let tasks: Vec<_> = (0..count).map(start).collect();
            for task in tasks {
                task.await;
            }
        });
    });
}

/// Proves that the kernel never works on memory that has another owner: every read is given up while it is under way
/// or queued, and its memory must stay out of reach until the kernel has filled it.
#[test]
fn memory_of_a_dropped_future_is_kept_until_the_kernel_is_done() {
    on_each_engine(|| {
        let file = file_of(&[0xEE; 64 << 10]);
        block_on(async {
            for round in 0..500 {
                let memory = SgList::unspecified(64 << 10);
                memory.fill(0, memory.len(), 0x11);
                let mut future = read(&file, 0, memory.clone());
                poll_once(&mut future).await;
                if round % 2 == 0 {
                    turn().unwrap();
                }
                drop(future);
                // While the operation lives, the memory cannot be had back; afterwards it holds what was read.
                let mut memory = memory;
                let buffer = loop {
                    match Buffer::reclaim(memory) {
                        Ok(buffer) => break buffer,
                        Err(list) => memory = list,
                    }
                    turn().unwrap();
                    std::thread::yield_now();
                };
                assert!(buffer.iter().all(|byte| *byte == 0xEE), "the read ran to its end");
            }
        });
    });
}

#[test]
fn a_dropped_write_runs_to_its_end() {
    on_each_engine(|| {
        let file = file_of(&[0; 4096]);
        block_on(async {
            let mut future = write(&file, 0, SgList::copy_of(&[7; 4096]));
            poll_once(&mut future).await;
            drop(future);
            let memory = SgList::unspecified(4096);
            loop {
                assert_eq!(read(&file, 0, memory.clone()).await.0.unwrap(), 4096);
                if memory.to_vec() == [7; 4096] {
                    break;
                }
            }
        });
    });
}

/// Proves that futures that wait for a slot and are dropped do not take the wake-up of others with them.
#[test]
fn futures_that_give_up_waiting_for_a_slot_do_not_stop_others() {
    on_each_engine(|| {
        let file = file_of(&[1; 4096]);
        block_on(async {
            let mut taken: Vec<_> = (0..OPS_MAX).map(|_| read(&file, 0, SgList::unspecified(1))).collect();
            let mut waiting: Vec<_> = (0..50).map(|_| read(&file, 0, SgList::unspecified(1))).collect();
            for future in taken.iter_mut().chain(&mut waiting) {
                poll_once(future).await;
            }
            let file = file.clone();
            let last = spawn(async move { read(&file, 0, SgList::unspecified(1)).await.0.unwrap() });
            drop(waiting);
            drop(taken);
            assert_eq!(last.await, 1);
        });
    });
}

#[test]
fn a_thread_that_ends_with_operations_under_way_waits_for_them() {
    let memory = SgList::unspecified(1 << 20);
    memory.fill(0, memory.len(), 0);
    let file = file_of(&vec![3; 1 << 20]);
    let lent = memory.clone();
    let thread = std::thread::spawn(move || {
        block_on(async {
            let mut future = read(&file, 0, lent);
            poll_once(&mut future).await;
        });
    });
    thread.join().unwrap();
    let buffer = Buffer::reclaim(memory).expect("nobody holds the memory after the thread's end");
    assert!(buffer.iter().all(|byte| *byte == 3), "the read ran to its end");
}

#[test]
fn block_on_returns_when_nothing_that_it_began_is_under_way() {
    on_each_engine(|| {
        let file = file_of(&vec![3; 1 << 20]);
        let memory = SgList::unspecified(1 << 20);
        let lent = memory.clone();
        block_on(async {
            let mut future = read(&file, 0, lent);
            poll_once(&mut future).await;
        });
        // Another thread, which cannot drive this one's ring, must not wait for it in vain.
        std::thread::scope(|scope| scope.spawn(|| block_on(file.unused())).join().unwrap());
        let buffer = Buffer::reclaim(memory).expect("nobody holds the memory");
        assert!(buffer.iter().all(|byte| *byte == 3), "the read ran to its end");
    });
}

#[test]
fn a_sync_completes_after_the_writes_before_it() {
    on_each_engine(|| {
        let file = file_of(&[]);
        block_on(async {
            for index in 0..20u64 {
                write(&file, index * 4096, SgList::copy_of(&[index as u8; 4096])).await.0.unwrap();
                let synced = submit(Op { file: file.hold(), request: Request::Sync }).await.0;
                assert_eq!(synced.unwrap(), 0);
            }
        });
    });
}

#[test]
fn the_hook_is_called_once_for_a_batch_and_again_after_the_turn() {
    let calls = Rc::new(std::cell::Cell::new(0));
    let seen = calls.clone();
    set_turn_hook(Some(Rc::new(move || seen.set(seen.get() + 1))));
    let file = file_of(&[5; 100]);
    block_on(async {
        for batch in 1..=3 {
            let mut futures: Vec<_> = (0..10).map(|at| read(&file, at, SgList::unspecified(1))).collect();
            for future in &mut futures {
                poll_once(future).await;
            }
            assert_eq!(calls.get(), batch);
            assert!(needs_turn());
            for future in futures {
                assert_eq!(pin!(future).await.0.unwrap(), 1);
            }
            assert!(!needs_turn());
        }
    });
    set_turn_hook(None);
}
