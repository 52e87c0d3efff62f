//! The one thread that has a stack for what is nested deep. It lasts as long as the process, which does not start without it: what was
//! accepted once must not fail for want of a thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, mpsc};

/// Enough for everything that is within the bounds.
pub(super) const STACK_BYTES: usize = 64 * 1024 * 1024;

type Work = Box<dyn FnOnce() + Send>;

static THREAD: LazyLock<mpsc::Sender<Work>> = LazyLock::new(|| {
    let (sender, work) = mpsc::channel::<Work>();
    let thread = std::thread::Builder::new().name("filters".to_owned()).stack_size(STACK_BYTES);
    let run = move || work.into_iter().for_each(|work| drop(catch_unwind(AssertUnwindSafe(work))));
    drop(thread.spawn(run).expect("a thread can be made"));
    sender
});

/// Makes the thread, where it is not there yet. Panics where it cannot be made.
pub(super) fn prepare() {
    LazyLock::force(&THREAD);
}

/// Runs work there, and waits for it. None where it panics.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    THREAD.send(Box::new(move || drop(answer.send(work())))).ok()?;
    answered.recv().ok()
}
