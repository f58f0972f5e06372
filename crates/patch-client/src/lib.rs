//! Typed HTTP client for the agent's API.
