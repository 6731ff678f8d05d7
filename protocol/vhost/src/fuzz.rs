//! Pure entry points for fuzzers: bytes in, nothing but a verdict out; no thread, no file, no clock.
