//! apt and dpkg.

pub mod argv;
pub mod lock;
pub mod scripts;
pub mod status_fd;
