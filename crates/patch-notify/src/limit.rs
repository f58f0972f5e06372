//! Work that is given up at a time, though nothing in it can be interrupted.

use std::{
    io,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

/// Does something in a thread of its own, and gives it up after a while. The thread goes on until it ends or the program
/// does, which is soon after.
///
/// # Errors
/// When the time is over, or there can be no thread.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().name("limited".to_owned()).spawn(move || {
        // Nobody may wait any more.
        let _ = sender.send(work());
    })?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
        RecvTimeoutError::Disconnected => io::Error::other("it ended without a result"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_does_not_end_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 5).unwrap(), 5);
        let (sender, receiver) = channel::<()>();
        let error = within(Duration::from_millis(10), move || receiver.recv()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(sender);
    }
}
