//! The API: routes, roles, and how an answer is wrapped. Handlers extract, call and map; what they call lives in
//! [`crate::jobs`], [`crate::inventory`] and [`crate::executor`].

mod access;
mod app;
mod caller;
mod changes;
mod health;
mod jobs;
mod metrics;
mod observe;
pub mod openapi;
mod packages;
mod patches;
mod path;
mod prefer;
mod rate;
mod reply;
mod router;
mod shown;
pub mod system;
mod ws;

#[cfg(test)]
pub(crate) mod tests;

pub use app::{App, Certificates, Parts};
pub use metrics::Metrics;
pub use router::{PREFIX, service};
