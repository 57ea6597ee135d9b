//! placeholder

#![deny(clippy::iter_over_hash_type)]
// Tests have to take their first instant from somewhere.
#![cfg_attr(test, allow(clippy::disallowed_methods))]
