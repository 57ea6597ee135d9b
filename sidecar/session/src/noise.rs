//! `snow` with chance from the caller's seed.

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use snow::{
    Builder, Error,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};

pub(crate) const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";

struct Seeded {
    seed: [u8; 32],
    default: DefaultResolver,
}

struct Rng(ChaCha12Rng);

impl Random for Rng {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Rng(ChaCha12Rng::from_seed(self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        self.default.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.default.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        self.default.resolve_cipher(choice)
    }
}

/// A builder of our pattern whose ephemeral keys come from `rng`.
pub(crate) fn builder<'a>(rng: &mut impl RngCore) -> Builder<'a> {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let params: NoiseParams = PATTERN.parse().expect("a pattern that snow knows");
    Builder::with_resolver(params, Box::new(Seeded { seed, default: DefaultResolver }))
}
