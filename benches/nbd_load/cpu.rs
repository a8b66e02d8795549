//! Clocks, and processor time of this program's thread and of another process, in seconds.

use std::path::Path;

/// The system's monotonic clock, which other programs read too.
pub fn monotonic_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    seconds(time.tv_sec, time.tv_nsec)
}

/// What the calling thread has used.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    seconds(time.tv_sec, time.tv_nsec)
}

#[expect(clippy::cast_precision_loss, reason = "a microsecond is precise enough")]
fn seconds(whole: i64, nanoseconds: i64) -> f64 {
    whole as f64 + nanoseconds as f64 / 1e9
}

/// What a process and its children have used that live now, to the nanosecond, and their
/// resident memory in bytes; `None` when it is gone. A server that forks for each client
/// works in a child.
pub fn process(pid: u32) -> Option<(f64, u64)> {
    let (mut total, mut resident) = one(pid)?;
    for child in children(pid) {
        let (used, memory) = one(child).unwrap_or_default();
        total += used;
        resident += memory;
    }
    Some((total, resident))
}

fn one(pid: u32) -> Option<(f64, u64)> {
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

fn children(pid: u32) -> Vec<u32> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|child| parent(*child) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
