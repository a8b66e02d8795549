//! Processor time: of this program's thread, and of another process, in seconds.

use std::path::Path;

/// What the calling thread has used.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    seconds(time.tv_sec, time.tv_nsec)
}

#[expect(clippy::cast_precision_loss, reason = "a microsecond is precise enough")]
fn seconds(whole: i64, nanoseconds: i64) -> f64 {
    whole as f64 + nanoseconds as f64 / 1e9
}

/// What the threads of a process that live now have used, to the nanosecond, and its
/// resident memory in bytes; `None` when it is gone.
pub fn process(pid: u32) -> Option<(f64, u64)> {
    let dir = Path::new("/proc").join(pid.to_string());
    let mut total = 0.0;
    for task in std::fs::read_dir(dir.join("task")).ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).unwrap_or_default();
        let used: i64 = text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        total += seconds(0, used);
    }
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    Some((total, kib.unwrap_or(0) * 1024))
}
