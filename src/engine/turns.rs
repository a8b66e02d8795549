//! Turns: who comes first is served first.
//!
//! A lock that lets anybody in who happens to be there can keep one of several that ask again
//! and again out for ever; sessions of one volume do that.

use futures::channel::oneshot;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A queue of those who want to be alone with something.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    held: bool,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// Nobody else has his turn as long as this lives.
pub struct Turn(Option<Turns>);

impl Turns {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn.
    pub async fn wait(&self) -> Turn {
        let waiting = {
            let mut queue = self.queue();
            if !queue.held {
                queue.held = true;
                return Turn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            queue.waiting.push_back(sender);
            receiver
        };
        // A sender in the queue is used before it is dropped.
        waiting.await.unwrap_or(Turn(None))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut queue = turns.queue();
                let next = queue.waiting.pop_front();
                queue.held = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // Whoever waited has left; the turn that comes back is not another one.
                Err(mut back) => drop(back.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn the_first_comes_first_and_who_leaves_is_passed_over() {
        let turns = Turns::default();
        let first = turns.wait().now_or_never().unwrap();
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(turns.wait())).collect();
        for waiting in &mut waiting {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(waiting.remove(0));
        drop(first);
        let second = waiting.remove(0).now_or_never().unwrap();
        assert!(waiting[0].as_mut().now_or_never().is_none());
        drop(second);
        // It had its turn and left without taking it.
        drop(waiting.remove(0));
        let last = waiting.remove(0).now_or_never().unwrap();
        drop(last);
        assert!(turns.wait().now_or_never().is_some());
    }
}
