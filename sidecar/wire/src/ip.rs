//! IP headers.
