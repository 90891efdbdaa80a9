//! Bad input: refused with a clear error, and nothing is lost.
