//! Types of the local HTTP API.
