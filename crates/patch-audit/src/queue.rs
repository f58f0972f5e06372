//! The writer's queue. Records that nobody waits for do not wake the writer: while it has some in memory it looks into
//! the queue when they are due, and before that only if somebody waits, or when the queue begins to fill. Waking it for
//! every read would cost more than the read.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SendError, TryRecvError, TrySendError},
    },
    thread::{self, Thread},
    time::Instant,
};

use crate::writer::Message;

/// A queue for about so many messages. It takes memory for those that are in it: a channel with bounds of its own would
/// take it for all that could be.
pub(crate) fn queue(length: usize) -> (Sender, Inbox) {
    let (channel, messages) = mpsc::channel();
    let bell =
        Arc::new(Bell { writer: OnceLock::new(), waiting: AtomicUsize::new(0), length: length.max(1) });
    (Sender { channel, bell: Arc::clone(&bell) }, Inbox { messages, bell })
}

struct Bell {
    writer: OnceLock<Thread>,
    /// How many messages are in the queue.
    waiting: AtomicUsize,
    /// How many may be.
    length: usize,
}

impl Bell {
    fn ring(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}

/// The queue's end for those who have something to record.
#[derive(Clone)]
pub(crate) struct Sender {
    channel: mpsc::Sender<Message>,
    bell: Arc<Bell>,
}

impl Sender {
    /// Hands a message over unless the queue is full.
    pub(crate) fn try_send(&self, message: Message) -> Result<(), TrySendError<Message>> {
        let waiting = self.bell.waiting.fetch_add(1, Ordering::Relaxed);
        if waiting >= self.bell.length {
            self.bell.waiting.fetch_sub(1, Ordering::Relaxed);
            self.bell.ring();
            return Err(TrySendError::Full(message));
        }
        let may_wait = message.may_wait() && waiting < self.bell.length / 4;
        self.channel.send(message).map_err(|SendError(message)| TrySendError::Disconnected(message))?;
        if !may_wait {
            self.bell.ring();
        }
        Ok(())
    }

    /// Hands a message over, however many there are: for the few that must be heard.
    pub(crate) fn send(&self, message: Message) -> Result<(), SendError<Message>> {
        self.bell.waiting.fetch_add(1, Ordering::Relaxed);
        self.channel.send(message)?;
        self.bell.ring();
        Ok(())
    }
}

/// The writer's end.
pub(crate) struct Inbox {
    messages: Receiver<Message>,
    bell: Arc<Bell>,
}

impl Inbox {
    /// The next message. Given a time, it comes by then, or when it has to be heard of at once.
    pub(crate) fn next(&self, by: Option<Instant>) -> Result<Message, RecvTimeoutError> {
        self.bell.writer.get_or_init(thread::current);
        let Some(by) = by else {
            let message = self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected);
            return message.inspect(|_| self.took_one());
        };
        loop {
            match self.messages.try_recv() {
                Ok(message) => {
                    self.took_one();
                    return Ok(message);
                }
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecvTimeoutError::Timeout);
            }
            thread::park_timeout(left);
        }
    }

    /// The next message, if there is one already.
    pub(crate) fn take(&self) -> Option<Message> {
        self.messages.try_recv().ok().inspect(|_| self.took_one())
    }

    fn took_one(&self) {
        self.bell.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{AuditEvent, AuditKind, Caller};

    fn later() -> Message {
        let event = AuditEvent::new(AuditKind::AuthSuccess, &Caller::local());
        Message::Record { event: Box::new(event), waiter: None }
    }

    fn urgent() -> Message {
        let (done, _) = mpsc::sync_channel(1);
        Message::Flush { done }
    }

    #[test]
    fn only_what_is_urgent_or_too_much_is_heard_before_its_time() {
        let (sender, inbox) = queue(40);
        let far = || Some(Instant::now() + Duration::from_secs(60));
        sender.try_send(later()).unwrap();
        assert!(inbox.next(None).unwrap().may_wait(), "with nothing in memory all is heard at once");
        assert!(matches!(inbox.next(Some(Instant::now())), Err(RecvTimeoutError::Timeout)));

        let writer = thread::spawn(move || {
            let mut quiet = 0;
            while inbox.next(far()).unwrap().may_wait() {
                quiet += 1;
            }
            quiet
        });
        for _ in 0..12 {
            sender.try_send(later()).unwrap();
        }
        sender.try_send(urgent()).unwrap();
        assert_eq!(writer.join().unwrap(), 12, "in order, and long before the time");
    }

    #[test]
    fn a_full_queue_takes_no_more_and_is_emptied() {
        let (sender, inbox) = queue(8);
        for _ in 0..8 {
            sender.try_send(later()).unwrap();
        }
        assert!(matches!(sender.try_send(later()), Err(TrySendError::Full(_))));
        assert!(inbox.take().is_some());
        sender.try_send(later()).unwrap();
        assert!(matches!(sender.try_send(urgent()), Err(TrySendError::Full(_))));
        sender.send(urgent()).unwrap();
        let by = Some(Instant::now() + Duration::from_secs(60));
        let quiet = std::iter::repeat_with(|| inbox.next(by).unwrap()).take_while(Message::may_wait).count();
        assert_eq!(quiet, 8);
        assert_eq!(sender.bell.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_writer_ends_with_the_last_sender() {
        let (sender, inbox) = queue(8);
        drop(sender);
        let by = Some(Instant::now() + Duration::from_secs(60));
        assert!(matches!(inbox.next(by), Err(RecvTimeoutError::Disconnected)));
        assert!(matches!(inbox.next(None), Err(RecvTimeoutError::Disconnected)));
    }
}
