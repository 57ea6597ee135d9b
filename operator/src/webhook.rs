//! Puts a sidecar into pods that ask for one, when the API server asks about them.
//!
//! [`inject`] decides and is pure; [`certificate`] decides which certificate is served and trusted; [`serve`] answers over TLS in every
//! replica, and [`rotate`] in the one that leads keeps the Secret and the `caBundle` as they should be. A webhook that does not answer
//! costs a pod its sidecar and nothing else (`failurePolicy: Ignore`), so whatever goes wrong in here, the pod is let through.

pub mod certificate;
pub mod inject;
pub mod review;
pub mod rotate;
pub mod serve;
