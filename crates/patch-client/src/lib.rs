//! Typed client for the agent's API: HTTP requests, and jobs followed live over a WebSocket.
//!
//! This crate owns the way to one agent: mutual TLS with exactly one trusted CA, requests and answers as the types of
//! [`patch_types::api`], and errors that tell a person what to do next. It decides nothing about fleets and prints
//! nothing.
//!
//! ```no_run
//! # async fn example() -> Result<(), patch_client::Error> {
//! use patch_client::{Client, ClientConfig, PackageFilter, Submit};
//!
//! let config = ClientConfig::new("web1.internal".parse()?, "ca.pem", "client.pem", "client.key.pem");
//! let client = Client::new(config)?;
//! let upgradable = client.packages(&PackageFilter { upgradable: Some(true), ..Default::default() }).await?;
//! println!("{} packages can be upgraded", upgradable.total);
//! let job = client.refresh(&Submit::repeatable()).await?;
//! let ended = client.follow_to_end(job.job_id, |_message| {}).await?;
//! println!("{}", ended.status);
//! # Ok(())
//! # }
//! ```

mod address;
mod agent;
mod answer;
mod config;
mod error;
mod filter;
mod follow;
mod identity;
mod tls;
mod transport;
mod watch;
mod websocket;

pub use address::{Address, DEFAULT_PORT};
pub use agent::Client;
pub use answer::Answer;
pub use config::{ClientConfig, Submit};
pub use error::{Error, FileProblem, Stage};
pub use filter::{JobFilter, PackageFilter, PackageSort, PackageState};
