//! The service's own log, on standard error, and its level, which can change while it runs.

use tracing_subscriber::{Registry, filter::LevelFilter, fmt, layer::SubscriberExt as _, reload};

use crate::config;

/// The level of the log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Level(Option<reload::Handle<LevelFilter, Registry>>);

impl Level {
    /// Puts another level into effect, at once.
    pub fn set(&self, level: config::LogLevel) {
        // It fails only when there is no log any more.
        if let Some(handle) = &self.0
            && let Err(error) = handle.reload(filter(level))
        {
            tracing::warn!(%error, "the level of the log could not be changed");
        }
    }
}

/// Starts the log.
#[must_use]
pub fn start(level: config::LogLevel) -> Level {
    // A level is all that the configuration offers; filters by target would cost a regular-expression engine.
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    // The journal keeps the time itself.
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        tracing::subscriber::set_global_default(registry.with(lines.without_time()))
    } else {
        tracing::subscriber::set_global_default(registry.with(lines))
    };
    match started {
        Ok(()) => Level(Some(handle)),
        Err(error) => {
            eprintln!("linux-patch-api: the log cannot be started: {error}");
            Level::default()
        }
    }
}

fn filter(level: config::LogLevel) -> LevelFilter {
    match level {
        config::LogLevel::Error => LevelFilter::ERROR,
        config::LogLevel::Warn => LevelFilter::WARN,
        config::LogLevel::Info => LevelFilter::INFO,
        config::LogLevel::Debug => LevelFilter::DEBUG,
        config::LogLevel::Trace => LevelFilter::TRACE,
    }
}
