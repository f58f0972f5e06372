//! Telling people and programs how a patch run went: mail by SMTP, and webhooks.
//!
//! A [`Report`] says what happened once; [`Outbox`] keeps it on disk until everybody who is to be told has been, and
//! remembers that, so that nobody is told twice but by who dies, or loses the disk, between a yes and the note of it. Whoever makes reports decides nothing about that: queue, then deliver, as
//! often as one likes.
//!
//! Everything here blocks and needs no runtime. Secrets come from files of root's alone or from systemd's credentials,
//! never from the configuration; nothing is sent in the clear but to this host; and nothing that a report says can become
//! a header, an address or a second request.

mod config;
mod error;
pub mod exchange;
mod limit;
mod mail;
mod outbox;
mod report;
mod secret;
mod tls;
mod webhook;

pub use patch_types::notifications::{Mail, Notifications, ReportMode, Webhook};

pub use self::{
    config::{CONFIG, load},
    error::{NotifyError, Reason},
    outbox::{Delivered, Outbox},
    report::{Message, Report, RunResult},
    secret::Secrets,
};

/// Sends a message by mail.
///
/// # Errors
/// Why it was not sent, to what, and what to do.
pub fn send_mail(mail: &Mail, secrets: &Secrets, message: &Message) -> Result<(), NotifyError> {
    mail::send(mail, secrets, message)
}

/// Sends a message to a webhook.
///
/// # Errors
/// Why it was not sent, and what to do. The webhook's path is not in it: it may be a secret.
pub fn send_webhook(webhook: &Webhook, secrets: &Secrets, message: &Message) -> Result<(), NotifyError> {
    webhook::send(webhook, secrets, message)
}
