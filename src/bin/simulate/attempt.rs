//! Attempts: runs whose panics are caught and told as violations.

use snapvol::snapshot::model::{Counts, Kind, Run};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

thread_local! {
    /// How the last panic of this thread reads.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    /// What this thread is doing.
    static DOING: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are kept, not printed; but for one during another, which ends the program.
pub fn quieten_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
        let place = info.location().map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
        let message = format!("{text}{place}");
        if message.contains("panic in a destructor") || message.contains("cannot unwind") {
            let doing = DOING.with_borrow(String::clone);
            let first = MESSAGE.with_borrow(String::clone);
            eprintln!("violation: {first}; then {message}\n  replay: {doing}");
        }
        MESSAGE.with_borrow_mut(|kept| *kept = message);
    }));
}

/// Does something; how it panicked, if it did.
pub fn attempt<T>(doing: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    DOING.with_borrow_mut(|kept| doing.clone_into(kept));
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| MESSAGE.with_borrow(String::clone))
}

/// Does a run; what it did until it ended, and how it went wrong, if it did.
pub fn attempt_run(kind: &Kind, run: Run) -> (Rc<Run>, Counts, Result<(), String>) {
    let run = Rc::new(run);
    let result = attempt(&replay_command(kind, &run), || (kind.run)(&run));
    let counts = run.counts();
    (run, counts, result)
}

/// The command that does a run again.
pub fn replay_command(kind: &Kind, run: &Run) -> String {
    let mut command = format!("tools/simulate --kind {} --seed {}", kind.name, run.seed);
    if run.vary != 0 {
        command += &format!(" --vary {}", run.vary);
    }
    if let Some(only) = &run.only {
        let ids: Vec<String> = only.iter().map(ToString::to_string).collect();
        command += &format!(" --only {}", ids.join(","));
    }
    command
}
