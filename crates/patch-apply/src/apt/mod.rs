//! apt and dpkg.

pub mod archives;
pub mod argv;
pub mod ballast;
pub(crate) mod deb;
pub mod files;
pub mod hook;
pub mod litter;
pub mod lock;
pub mod policy_rc;
pub mod rebuild;
pub mod rehearse;
pub mod restore;
pub mod scripts;
pub mod snapshot;
pub mod stage;
pub mod status_fd;
pub mod store;
pub mod taken_back;
#[cfg(test)]
mod testing;
pub mod updater;

#[doc(hidden)]
pub use deb::read_members;
