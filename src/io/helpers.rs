//! Helper threads for system calls that may block, and the event descriptor that ends
//! a wait.
//!
//! Threads start when work finds no idle one, and stay until the driver goes. Dropping
//! the pool waits for the jobs it was given: nothing touches a file after its driver is
//! gone.

use super::region::SharedMemory;
use super::{OpId, Outcome, Output, Wake};
use bytes::BytesMut;
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::EventfdFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Threads of one driver. Syncs, punches and uncached reads spend their time waiting,
/// so more of them than cores are useful.
const THREADS_MAX: usize = 8;

/// What a helper thread does.
pub(super) type Job = Box<dyn FnOnce() -> io::Result<Finished> + Send>;

/// What a job brings; unlike [`Output`] it may cross threads.
pub(super) enum Finished {
    None,
    Bytes(BytesMut),
    Pieces(BytesMut, Vec<usize>),
    Names(Vec<String>),
    Region(SharedMemory),
}

impl From<Finished> for Output {
    fn from(finished: Finished) -> Self {
        match finished {
            Finished::None => Self::None,
            Finished::Bytes(bytes) => Self::Bytes(bytes),
            Finished::Pieces(bytes, missing) => Self::Pieces(bytes, missing),
            Finished::Names(names) => Self::Names(names),
            Finished::Region(memory) => Self::Region(Rc::new(memory)),
        }
    }
}

/// An event descriptor: written by anybody, read by the driver.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it silent again; whether it had rung.
    pub(super) fn silence(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl Wake for Bell {
    fn wake(&self) {
        // Any number but zero rings, in either byte order. The only way to fail is a counter at its maximum, and then it rings anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_le_bytes());
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The helper threads of one driver.
pub(super) struct Helpers {
    /// `None` only while it is dropped: the threads end when the channel does.
    jobs: Option<Sender<(OpId, Job)>>,
    jobs_taken: Receiver<(OpId, Job)>,
    results: Receiver<(OpId, io::Result<Finished>)>,
    report: Sender<(OpId, io::Result<Finished>)>,
    threads: Vec<JoinHandle<()>>,
    under_way: usize,
    bell: Arc<Bell>,
}

impl Helpers {
    /// No threads yet; `bell` rings when a job is done.
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        let (jobs, jobs_taken) = unbounded();
        let (report, results) = unbounded();
        Self { jobs: Some(jobs), jobs_taken, results, report, threads: Vec::new(), under_way: 0, bell }
    }

    /// Has a thread do the job.
    pub(super) fn give(&mut self, id: OpId, job: Job) -> io::Result<()> {
        if self.threads.len() < THREADS_MAX && self.under_way >= self.threads.len() {
            match self.start_thread() {
                Ok(thread) => self.threads.push(thread),
                // Fewer threads are slower; none at all is an error.
                Err(error) if self.threads.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        self.under_way += 1;
        let jobs = self.jobs.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        jobs.send((id, job)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn start_thread(&self) -> io::Result<JoinHandle<()>> {
        let (jobs, report, bell) = (self.jobs_taken.clone(), self.report.clone(), Arc::clone(&self.bell));
        std::thread::Builder::new().name("snapvol-io".into()).spawn(move || {
            for (id, job) in jobs {
                let result = catch_unwind(AssertUnwindSafe(job))
                    .unwrap_or_else(|_| Err(io::Error::other("a helper thread panicked")));
                if report.send((id, result)).is_err() {
                    return;
                }
                bell.wake();
            }
        })
    }

    /// Takes what is done.
    pub(super) fn collect(&mut self, done: &mut Vec<(OpId, Outcome)>) {
        if self.under_way == 0 {
            return;
        }
        while let Ok((id, result)) = self.results.try_recv() {
            self.under_way -= 1;
            done.push((id, result.map(Output::from)));
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
